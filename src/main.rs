//! The `byway` program: arguments in, exit code out. Called by the name of a container runtime's plugin it is that.
#![expect(
    unsafe_code,
    reason = "the environment can only be changed in an unsafe block"
)]

use std::process::ExitCode;

use byway::cli::{self, Entry};
use byway::daemon;
use byway::engine::cni;

fn main() -> ExitCode {
    // A TLS key log would let whoever reads it open every QUIC session.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::remove_var("SSLKEYLOGFILE") };
    if std::env::args_os()
        .next()
        .as_deref()
        .is_some_and(cni::is_called)
    {
        return ExitCode::from(cni::run());
    }
    let entry = Entry {
        run: |config| Ok(daemon::run(config)?),
        preflight: daemon::preflight,
        cleanup: daemon::cleanup,
    };
    ExitCode::from(cli::run(std::env::args_os(), entry))
}
