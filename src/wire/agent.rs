//! What a program says of itself in one line: its name, the versions of the formats it speaks, and bits for what it has
//! beyond them.
//!
//! ```text
//! byway/0.1.0 v=1-1 f=0
//! ```
//!
//! It travels as the agent of libp2p's identify, and in the answer to a ping. `v` is the first and the last version of all
//! formats between members that the program speaks; two that have one in common use the greatest. `f` is a number in
//! hexadecimal whose bits later versions give out: this one knows none, and what it does not know changes nothing. Other
//! words are ignored, so that the line can grow. A member wrote it, so nothing rests on it but what people are told.

use std::fmt;

/// Bytes of the longest line that is read.
pub const MAX_TEXT: usize = 256;
/// Characters kept of a program's name.
const MAX_PROGRAM: usize = 32;

/// Versions of the formats between members, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Versions {
    /// The lowest version that is spoken.
    pub least: u16,
    /// The highest version that is spoken; all between the two are spoken as well.
    pub most: u16,
}

/// The versions that this program speaks.
pub const VERSIONS: Versions = Versions { least: 1, most: 1 };
/// What this program has beyond its version: no bit is given out yet.
pub const FEATURES: u64 = 0;

impl Versions {
    /// The greatest version that both speak.
    pub fn common(self, other: Versions) -> Option<u16> {
        let most = self.most.min(other.most);
        (most >= self.least.max(other.least)).then_some(most)
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.least == self.most {
            write!(f, "{}", self.most)
        } else {
            write!(f, "{} to {}", self.least, self.most)
        }
    }
}

/// The line of a program, taken apart. It is what that program says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// The program with its own version: `byway/0.1.0`. Letters, digits and `/.-+_`, 32 characters at most.
    pub program: String,
    /// The versions of the formats between members that it speaks.
    pub versions: Versions,
    /// The feature bits that it sets; those above the low 64 are dropped.
    pub features: u64,
}

/// The line of this program.
pub fn text() -> String {
    let Versions { least, most } = VERSIONS;
    format!(
        "byway/{} v={least}-{most} f={FEATURES:x}",
        env!("CARGO_PKG_VERSION")
    )
}

impl Agent {
    /// Reads a line. `None` for what is no line of byway's, or names no versions.
    pub fn parse(text: &str) -> Option<Agent> {
        if text.len() > MAX_TEXT {
            return None;
        }
        let mut words = text.split(' ');
        let program = words.next().filter(|word| word.starts_with("byway/"))?;
        let named = |c: &char| c.is_ascii_alphanumeric() || "/.-+_".contains(*c);
        let program = program.chars().filter(named).take(MAX_PROGRAM).collect();
        let words: Vec<&str> = words.collect();
        let value = |key: &str| words.iter().find_map(|word| word.strip_prefix(key));
        let (least, most) = value("v=")?.split_once('-')?;
        let versions = Versions {
            least: number(least)?,
            most: number(most)?,
        };
        let features = value("f=").map_or(Some(0), features)?;
        (versions.least > 0 && versions.least <= versions.most).then_some(Agent {
            program,
            versions,
            features,
        })
    }

    /// What people are told of a member with whom this program has no version in common; `None` where it has one.
    pub fn no_common(&self) -> Option<String> {
        if self.versions.common(VERSIONS).is_some() {
            return None;
        }
        let program = &self.program;
        Some(format!(
            "it runs {program} and speaks version {}, this machine version {VERSIONS}",
            self.versions
        ))
    }
}

/// Reads decimal digits and nothing else.
fn number(text: &str) -> Option<u16> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

/// The low 64 bits of any number of hexadecimal digits.
fn features(text: &str) -> Option<u64> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u64::from_str_radix(text.get(text.len().saturating_sub(16)..)?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn our_own_line_reads_back() {
        let ours = Agent::parse(&text()).unwrap();
        assert_eq!((ours.versions, ours.features), (VERSIONS, FEATURES));
        assert_eq!(ours.program, format!("byway/{}", env!("CARGO_PKG_VERSION")));
        assert_eq!(ours.no_common(), None);
    }

    #[test]
    fn a_later_range_with_bits_and_words_nobody_knows_is_understood() {
        let later =
            Agent::parse("byway/7.2 v=1-9 f=f0000000000000000000000000000005 x=what ever").unwrap();
        assert_eq!(
            (later.versions.common(VERSIONS), later.features),
            (Some(1), 5)
        );
        assert_eq!(later.no_common(), None);
    }

    #[test]
    fn who_has_no_version_in_common_is_told_in_plain_words() {
        let far = Agent::parse("byway/7.2 v=4-9 f=1").unwrap();
        let told = "it runs byway/7.2 and speaks version 4 to 9, this machine version 1";
        assert_eq!(far.no_common().as_deref(), Some(told));
    }

    #[test]
    fn what_is_no_line_says_nothing() {
        for text in [
            "",
            "byway/0.1",
            "byway/evil",
            "kubo/0.1 v=1-1",
            "byway/1 v=2-1",
            "byway/1 v=0-1",
            "byway/1 v=+1-1",
            "byway/1 v=1-65536",
            "byway/1 v=1-1 f=",
            "byway/1 v=1-1 f=-1",
        ] {
            assert_eq!(Agent::parse(text), None, "{text}");
        }
        assert_eq!(
            Agent::parse(&format!("byway/1 v=1-1 {}", "x".repeat(MAX_TEXT))),
            None
        );
        let loud = Agent::parse("byway/\u{1b}[31m1\n v=1-1").unwrap();
        assert_eq!(
            loud.program, "byway/31m1",
            "nothing of it moves a terminal's cursor"
        );
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in ".{0,300}", tail in "[a-z0-9=ï -]{0,40}") {
            let _ = Agent::parse(&text);
            if let Some(agent) = Agent::parse(&format!("byway/1 v=1-2 f=é{tail}")) {
                prop_assert!(agent.program.len() <= MAX_PROGRAM);
            }
            let _ = Agent::parse(&format!("byway/1 v=1-2 f={tail}"));
        }
    }
}
