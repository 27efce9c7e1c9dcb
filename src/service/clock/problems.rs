//! What people are told of clocks that differ.

use super::{Clocks, Judgement, is_off};
use crate::api::types::{Error, Problem};
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::node::unix_now_ms;

/// The first of January 2026, seconds since 1970.
const WRITTEN: u64 = 1_767_225_600;
/// The command that sets a clock right.
const REMEDY: &str = "timedatectl set-ntp true";

/// The problems that `status` shows of clocks that differ.
pub(crate) fn problems(
    judgement: &Judgement,
    connected: &[PeerId],
    name: impl Fn(PeerId) -> String,
) -> Vec<Problem> {
    let off = judgement
        .known
        .iter()
        .filter(|(peer, offset)| is_off(*offset) && connected.binary_search(peer).is_ok());
    let told = off.map(|(peer, offset)| {
        let stops = judgement
            .against
            .iter()
            .any(|members| members.contains(peer));
        // Members of one subnet set no clock that another's agree with.
        tell(
            &name(*peer),
            *offset,
            (stops, stops && judgement.contradicted),
        )
    });
    impossible(unix_now_ms() / 1000)
        .into_iter()
        .chain(told)
        .collect()
}

/// A difference in words. `stops`: it is why no grants are renewed in a subnet; `mine`: this machine's clock is the wrong
/// one.
fn tell(name: &str, offset: i64, (stops, mine): (bool, bool)) -> Problem {
    let size = span(offset.unsigned_abs() / 1000);
    let side = if offset > 0 { "ahead of" } else { "behind" };
    let effect = match (stops, mine) {
        (_, true) => {
            "; until this one is set, no grants are renewed here in a subnet where most say so"
        }
        (true, false) => "; until they agree, no grants are renewed here in that member's subnet",
        (false, false) => "",
    };
    Problem {
        code: Code::Clock.to_string(),
        severity: if mine { "error" } else { "warning" }.into(),
        message: format!("the clock of {name} is {size} {side} this machine's{effect}"),
        help: if mine {
            REMEDY.into()
        } else {
            format!("on {name}: {REMEDY}")
        },
    }
}

/// Nobody has to be asked about a clock that says a time before this program was written: it has not been set yet.
fn impossible(now: u64) -> Option<Problem> {
    (now < WRITTEN).then(|| Problem {
        code: Code::Clock.to_string(),
        severity: "warning".into(),
        message: "this machine's clock is not set: it says a time before byway was written, and invites made now have \
                  ended by anybody else's"
            .into(),
        help: format!("{REMEDY}; then make invites anew"),
    })
}

/// Of what status says, that which a clock decides: while ours is not believed, it may be untrue, and what would mend it
/// otherwise would end something that is well.
fn is_by_clock(code: &str) -> bool {
    matches!(
        code.parse(),
        Ok(Code::NotMember
            | Code::GrantExpires
            | Code::NoTarget
            | Code::NameTaken
            | Code::NameContested)
    )
}

/// While this machine's clock is not believed, to set it is the only remedy for what follows from it.
pub(crate) fn blame(judgement: &Judgement, problems: &mut [Problem]) {
    for problem in problems
        .iter_mut()
        .filter(|p| judgement.contradicted && is_by_clock(&p.code))
    {
        problem.message += ", by this machine's clock";
        problem.help = REMEDY.into();
    }
}

/// The error of a verb, which says so where this machine's clock is what it failed by.
pub(crate) fn blamed(clocks: &Clocks, mut error: Error) -> Error {
    if clocks.judgement().contradicted && is_by_clock(&error.code) {
        error.message += ", by this machine's clock, which the other members contradict";
        error.hint = REMEDY.into();
    }
    error
}

/// A time in words, as people say it.
fn span(seconds: u64) -> String {
    match seconds {
        s if s >= 2 * 86_400 => format!("{} days", s / 86_400),
        s if s >= 2 * 3600 => format!("{} hours", s / 3600),
        s if s >= 120 => format!("{} minutes", s / 60),
        s => format!("{s} seconds"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_another_subnet_confirms_is_not_the_one_to_set() {
        let told =
            [(false, false), (true, false), (true, true)].map(|how| tell("m1", 150_000, how));
        assert!(
            told.iter()
                .all(|p| p.code == "E-CLOCK" && p.message.contains("m1 is 2 minutes ahead of"))
        );
        assert_eq!(
            told.each_ref().map(|p| p.severity.as_str()),
            ["warning", "warning", "error"]
        );
        assert_eq!(
            told.each_ref()
                .map(|p| p.message.contains("no grants are renewed")),
            [false, true, true]
        );
        assert_eq!(
            told.each_ref().map(|p| p.help == REMEDY),
            [false, false, true]
        );
    }

    #[test]
    fn a_clock_that_was_never_set_is_told_without_asking_anybody() {
        assert_eq!(
            [impossible(0).is_some(), impossible(WRITTEN - 1).is_some()],
            [true; 2]
        );
        assert_eq!(impossible(WRITTEN), None);
    }

    #[test]
    fn differences_are_told_in_words() {
        assert_eq!(
            [span(61), span(200), span(7200), span(200 * 86_400)],
            ["61 seconds", "3 minutes", "2 hours", "200 days"]
        );
    }
}
