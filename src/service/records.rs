//! Keeping records the same at every member that is connected: `tell` pushes what is new and compares, `take` checks what
//! comes and hands it to the node.

pub(super) mod ranges;
pub(super) mod summary;
pub(super) mod take;
pub(crate) mod tell;
