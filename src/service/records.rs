//! Keeping records the same at every member that is connected.

pub(crate) mod tell;
