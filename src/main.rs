//! The `byway` program: arguments in, exit code out.
#![expect(unsafe_code, reason = "the environment can only be changed in an unsafe block")]

use std::process::ExitCode;

use byway::api::types::Done;
use byway::cli::{self, Entry};
use byway::daemon;

fn main() -> ExitCode {
    // A TLS key log would let whoever reads it open every QUIC session.
    // SAFETY: no other thread runs yet.
    unsafe { std::env::remove_var("SSLKEYLOGFILE") };
    let entry = Entry {
        run: |config| Ok(daemon::run(config)?),
        preflight: daemon::preflight,
        cleanup: |config, all| {
            let removed = daemon::cleanup(config, all)?;
            let message = if removed.is_empty() {
                "nothing was left".to_owned()
            } else {
                format!("removed {}", removed.join(", "))
            };
            Ok(Done { message, changed: !removed.is_empty() })
        },
    };
    ExitCode::from(cli::run(std::env::args_os(), entry))
}
