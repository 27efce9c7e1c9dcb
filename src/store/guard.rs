//! Keeps the database code's panics over a damaged file from being the last word.
//!
//! redb checks pages by checksum, but follows some of what it reads before that: a flipped bit can make it panic. Where
//! panics unwind, that is caught and becomes an error; where they abort, nothing can be caught, so the panic hook says
//! what the error would have said and ends the process as the error would have done.

use std::cell::RefCell;
use std::io::Write as _;
use std::panic::{self, UnwindSafe};
use std::sync::Once;

use super::error::StoreError;

/// Exit code of the command line for a failure that is nobody's conflict.
const EXIT_FAILED: i32 = 1;

thread_local! {
    /// What is wrong if this thread panics now.
    static VERDICT: RefCell<Option<String>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Runs `f`, which reads a file that may be damaged; a panic in it is `damage`.
pub(super) fn reading<T>(
    damage: StoreError,
    f: impl FnOnce() -> T + UnwindSafe,
) -> Result<T, StoreError> {
    HOOK.call_once(install);
    VERDICT.with_borrow_mut(|verdict| *verdict = Some(text(&damage)));
    let result = panic::catch_unwind(f);
    VERDICT.with_borrow_mut(|verdict| *verdict = None);
    result.map_err(|_| damage)
}

/// The form every error has on the command line.
fn text(error: &StoreError) -> String {
    format!(
        "error: {error} ({})\n  try:  {}",
        error.code(),
        error.hint()
    )
}

/// Puts a hook before the present one; other threads and other times are not concerned.
fn install() {
    let former = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let verdict = VERDICT
            .try_with(|v| v.try_borrow().ok().and_then(|v| v.clone()))
            .ok()
            .flatten();
        match verdict {
            None => former(info),
            Some(text) if cfg!(panic = "abort") => {
                // Not `eprintln`: it panics where standard error takes nothing.
                let _ = writeln!(std::io::stderr(), "{text}");
                std::process::exit(EXIT_FAILED);
            }
            // Caught by `reading`, which tells.
            Some(_) => {}
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Code;
    use std::path::Path;

    #[test]
    fn a_panic_is_the_damage_it_stands_for() {
        let damage = || {
            StoreError::damaged(
                Path::new("/none/state.redb"),
                "its pages contradict each other",
            )
        };
        assert_eq!(reading(damage(), || 7).unwrap(), 7);
        let error = reading(damage(), || panic!("a page"))
            .map(|()| 0)
            .unwrap_err();
        assert_eq!(error.code(), Code::StateDamaged);
        let text = text(&error);
        assert!(
            text.starts_with("error: state file /none/state.redb is damaged")
                && text.contains("\n  try:  "),
            "{text}"
        );
    }
}
