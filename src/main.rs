//! The `byway` program: arguments in, exit code out. Called by the name of an engine's plugin it is that.
#![expect(
    unsafe_code,
    reason = "the environment can only be changed in an unsafe block"
)]

use std::process::ExitCode;

use byway::cli::{self, Entry};
use byway::daemon;
use byway::engine::{cni, netavark};

fn main() -> ExitCode {
    // A TLS key log would let whoever reads it open every QUIC session.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::remove_var("SSLKEYLOGFILE") };
    let called = std::env::args_os().next().unwrap_or_default();
    if cni::is_called(&called) {
        return ExitCode::from(cni::run());
    }
    if netavark::is_called(&called) {
        return ExitCode::from(netavark::run(std::env::args_os()));
    }
    let entry = Entry {
        run: |config| Ok(daemon::run(config)?),
        preflight: daemon::preflight,
        cleanup: daemon::cleanup,
    };
    ExitCode::from(cli::run(std::env::args_os(), entry))
}
