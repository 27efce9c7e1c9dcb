//! What a runtime is told when a command fails: the error codes of the specification, and what becomes of the daemon's.

use crate::api::types::{Error, ErrorKind};

/// The configuration is of a version that this plugin does not speak, or that has not the command.
pub(super) const VERSION: u32 = 1;
/// A field of the configuration asks for what this plugin does not do; the message names the field and its value.
pub(super) const UNSUPPORTED: u32 = 2;
/// The namespace is not there: nothing was made, and there is nothing to delete.
pub(super) const UNKNOWN_CONTAINER: u32 = 3;
/// A variable of the environment is missing or wrong; the message names it.
pub(super) const ENVIRONMENT: u32 = 4;
/// Standard input or output cannot be read or written.
pub(super) const IO: u32 = 5;
/// Standard input is no JSON.
pub(super) const DECODE: u32 = 6;
/// The configuration cannot be right.
pub(super) const CONFIG: u32 = 7;
/// The daemon does not answer, or is not done: the same again may succeed.
pub(super) const AGAIN: u32 = 11;
/// `ADD` would fail.
pub(super) const UNAVAILABLE: u32 = 50;
/// `ADD` would fail, and the containers that are attached reach nothing either.
pub(super) const LIMITED: u32 = 51;
/// Every other error of the daemon: this and the exit code that `byway` would end with.
const OWN: u32 = 100;

/// Why a command failed, as it goes to standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub code: u32,
    /// One sentence, with the daemon's code where the daemon said it.
    pub message: String,
    /// What to do about it; may be empty.
    pub details: String,
}

impl Failure {
    pub(super) fn new(code: u32, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
            details: String::new(),
        }
    }

    #[must_use]
    pub(super) fn details(self, details: impl Into<String>) -> Failure {
        Failure {
            details: details.into(),
            ..self
        }
    }

    /// The error as JSON, in the words of a protocol version.
    pub(super) fn json(&self, version: &str) -> serde_json::Value {
        serde_json::json!({
            "cniVersion": version,
            "code": self.code,
            "msg": self.message,
            "details": self.details,
        })
    }
}

/// Errors of the daemon that pass by themselves.
const TRANSIENT: [&str; 4] = ["E-STOPPING", "E-KERNEL-SLOW", "E-BUSY", "E-SUBNET-DOWN"];
/// Errors of the daemon about what the configuration names.
const OF_CONFIG: [&str; 3] = ["E-NO-SUBNET", "E-AMBIGUOUS", "E-RELAY-ONLY"];

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match error.kind {
            ErrorKind::NoDaemon | ErrorKind::Timeout => AGAIN,
            _ if TRANSIENT.contains(&error.code.as_str()) => AGAIN,
            _ if OF_CONFIG.contains(&error.code.as_str()) => CONFIG,
            _ if error.code == "E-NO-NETNS" => UNKNOWN_CONTAINER,
            ErrorKind::Usage => CONFIG,
            kind => OWN + u32::from(kind.exit_code()),
        };
        let details = if error.hint.is_empty() {
            String::new()
        } else {
            format!("try: {}", error.hint)
        };
        Failure::new(code, format!("{} ({})", error.message, error.code)).details(details)
    }
}
