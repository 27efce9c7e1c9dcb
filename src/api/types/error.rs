//! What went wrong, with its exit code and HTTP status.

use serde::{Deserialize, Serialize};

use crate::model::error::Code;

/// What class an error is of; sets the exit code and the HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The request failed where it should not: exit 1, HTTP 500.
    Failed,
    /// The request has a value that can never be right: exit 2, HTTP 400.
    Usage,
    /// No daemon answers on the socket: exit 3, HTTP 503.
    NoDaemon,
    /// The user or this node's role does not allow it: exit 4, HTTP 403.
    NotPermitted,
    /// What the request names is not there: exit 5, HTTP 404.
    NotFound,
    /// What the request asks for is taken: exit 6, HTTP 409.
    Conflict,
    /// The other side refused, or an approval is waited for: exit 7, HTTP 423.
    Refused,
    /// No answer came in time: exit 8, HTTP 504.
    Timeout,
    /// The daemon is not well (`status --check`): exit 9, HTTP 500.
    Degraded,
}

impl ErrorKind {
    /// The exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::NoDaemon => 3,
            ErrorKind::NotPermitted => 4,
            ErrorKind::NotFound => 5,
            ErrorKind::Conflict => 6,
            ErrorKind::Refused => 7,
            ErrorKind::Timeout => 8,
            ErrorKind::Degraded => 9,
        }
    }

    /// The HTTP status on the control socket.
    pub fn http_status(self) -> u16 {
        match self {
            ErrorKind::Failed | ErrorKind::Degraded => 500,
            ErrorKind::NoDaemon => 503,
            ErrorKind::Usage => 400,
            ErrorKind::NotPermitted => 403,
            ErrorKind::NotFound => 404,
            ErrorKind::Conflict => 409,
            ErrorKind::Refused => 423,
            ErrorKind::Timeout => 504,
        }
    }
}

/// The one error people and programs see: made once, shown as `error: MESSAGE (CODE)` and `  try:  HINT`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Error {
    /// The error as a code for programs: the text of a [`Code`], or of
    /// one that only another version knows, when it comes from there.
    pub code: String,
    /// What failed, with which values, and why.
    pub message: String,
    /// A command to try next; empty where there is none.
    #[serde(default)]
    pub hint: String,
    /// The class of the error, which decides exit code and HTTP status.
    pub kind: ErrorKind,
}

impl Error {
    /// Makes an error without a hint.
    pub fn new(kind: ErrorKind, code: impl AsRef<str>, message: impl Into<String>) -> Error {
        Error {
            code: code.as_ref().to_owned(),
            message: message.into(),
            hint: String::new(),
            kind,
        }
    }

    /// What a daemon that only relays answers to all that needs a subnet: `E-RELAY-ONLY`.
    pub(crate) fn relay_only() -> Error {
        let message = "this daemon only relays for others (node.relay_only): it is in no subnet, and has no workloads and no \
                       port maps";
        let hint = "byway daemon --state-dir DIR --socket PATH      (another one on this machine, without --relay-only)";
        Error::new(ErrorKind::Failed, Code::RelayOnly, message).hint(hint)
    }

    /// Adds a command to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Error {
        self.hint = hint.into();
        self
    }
}

/// The body of an answer that is an error: `{"error": {"code", "message", "hint", "kind"}}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReply {
    /// The error that the request ended with.
    pub error: Error,
}
