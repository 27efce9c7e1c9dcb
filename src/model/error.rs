//! Why the core refuses a command or a record, in the words a person will read.

mod code;
mod hint;

pub use code::{Code, UnknownCode};
pub use hint::Hint;

/// Class of a refusal; the control API gives each its exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Something failed that should not fail, whatever was asked.
    Failed,
    /// The request has a value that can never be right.
    Usage,
    /// This node's role does not allow it.
    NotPermitted,
    /// There is no such subnet, member, lease, name, map or workload.
    NotFound,
    /// The address, prefix, port or name is taken.
    Conflict,
    /// The other side refused it, or has to decide first.
    Refused,
}

/// A refusal: what failed, with which values, why, and what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Error {
    /// The class of the refusal, which decides the exit code.
    pub kind: Kind,
    /// The exact refusal as a stable code, so that programs need not read the message.
    pub code: Code,
    /// What failed and why, for people: one sentence that begins in lower case.
    pub message: String,
    /// What to try next, where there is something.
    pub hint: Option<Hint>,
}

impl Error {
    /// Makes a refusal without a hint.
    pub fn new(kind: Kind, code: Code, message: impl Into<String>) -> Error {
        Error {
            kind,
            code,
            message: message.into(),
            hint: None,
        }
    }

    /// Adds what to try next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Option<Hint>>) -> Error {
        self.hint = hint.into();
        self
    }
}

/// The result of whatever may be refused with an [`Error`].
pub type Result<T> = std::result::Result<T, Error>;
