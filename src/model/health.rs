//! Health of workloads: how one is asked, and when it counts as unhealthy.
//!
//! A workload is asked once in each interval. When it fails several times in a row, its names are withdrawn and its port maps
//! let in nobody new. One success makes it healthy again. A workload that falls ill again soon after that has to succeed
//! more often each time before it is believed, so that its records do not go back and forth at every peer.
//!
//! Pure: [`Checks`] gets `now` and what came of each question, and says what is due and what changed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::error::{Code, Error, Kind, Result};
use super::id::Name;
use super::members::printable;

mod label;

pub use label::interval;

/// Seconds between two questions, where nobody says.
pub const INTERVAL: u32 = 10;
/// Failures in a row that make a workload unhealthy, where nobody says.
pub const FAIL: u16 = 3;
/// The longest interval, in seconds.
const MAX_INTERVAL: u32 = 3600;
/// The most failures in a row that may be asked for.
const MAX_FAIL: u16 = 100;
/// The longest path of a URL, in bytes.
const MAX_PATH: usize = 1024;
/// The most words of a command, and the most bytes of all of them.
pub const MAX_WORDS: (usize, usize) = (64, 16 * 1024);
/// The longest that one answer is waited for, in milliseconds.
const MAX_TIMEOUT: u64 = 5000;
/// Questions by TCP and HTTP that are under way at the same time, over all workloads.
pub const AT_ONCE: usize = 32;
/// Commands that are under way at the same time beside those: each holds a thread, and the engine starts a process for it.
pub const COMMANDS_AT_ONCE: usize = 16;
/// A workload that was well for so long (in milliseconds) is believed at its first success again.
const FORGIVEN: u64 = 600_000;
/// The most successes in a row that a workload may have to show.
const MAX_PROOF: u16 = 32;

/// How a workload is asked whether it is well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Probe {
    /// Whether a TCP port of it takes a connection.
    Tcp(u16),
    /// Whether a GET answers with a status from 200 to 399.
    Http {
        /// The TCP port that is asked.
        port: u16,
        /// The path with its query; it begins with `/`.
        path: String,
    },
    /// Whether a command ends with 0, run in its container by the container's engine.
    Exec(Vec<String>),
}

impl Probe {
    /// The probe of a URL. `is_own` says whether a host is the workload that is asked: no other is, or the label of a
    /// container could send this machine anywhere.
    ///
    /// # Errors
    /// `E-HEALTH` where the text is no such URL, or its host is another one.
    pub fn http(url: &str, is_own: impl Fn(&str) -> bool) -> Result<Probe> {
        let bad = |why: &str| wrong(format!("{} cannot be asked: {why}", printable(url)));
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| bad("only http:// is spoken"))?;
        let (place, path) = match rest.find(['/', '?']) {
            Some(at) if rest.get(at..).is_some_and(|p| p.starts_with('/')) => rest.split_at(at),
            Some(_) => return Err(bad("its path begins with '/'")),
            None => (rest, "/"),
        };
        let plain = |b: u8| b.is_ascii_graphic() && b != b'#';
        if path.len() > MAX_PATH || !path.bytes().all(plain) {
            return Err(bad(
                "its path is at most 1024 printable characters without '#'",
            ));
        }
        let (host, port) = match place.strip_prefix('[').and_then(|p| p.split_once(']')) {
            Some((host, "")) => (host, "80"),
            Some((host, port)) => (host, port.strip_prefix(':').unwrap_or_default()),
            None => place.split_once(':').unwrap_or((place, "80")),
        };
        let port = port.parse().ok().filter(|port| *port != 0);
        let port: u16 = port.ok_or_else(|| bad("its port is a number from 1 to 65535"))?;
        if !is_own(host) {
            return Err(bad(
                "its host is not this workload: write localhost, or the workload's name",
            ));
        }
        let path = path.to_owned();
        Ok(Probe::Http { port, path })
    }

    /// The probe of a command.
    ///
    /// # Errors
    /// `E-HEALTH` where there is no command, or it is too long.
    pub fn exec(words: Vec<String>) -> Result<Probe> {
        if !is_command(&words) {
            let bounds = "1 to 64 words of at most 16384 bytes in all";
            return Err(wrong(format!("a command to ask with has {bounds}")));
        }
        Ok(Probe::Exec(words))
    }

    /// As a person types it: `tcp 80`, `http http://localhost:8080/health`, `exec curl -f …`.
    pub fn text(&self) -> String {
        match self {
            Probe::Tcp(port) => format!("tcp {port}"),
            Probe::Http { port, path } => format!("http http://localhost:{port}{path}"),
            Probe::Exec(words) => {
                let words: Vec<String> = words.iter().map(|word| label::quoted(word)).collect();
                format!("exec {}", words.join(" "))
            }
        }
    }
}

/// Whether words are a command that may be asked with: it is named, and within [`MAX_WORDS`].
pub fn is_command(words: &[String]) -> bool {
    let (most, bytes) = MAX_WORDS;
    words.first().is_some_and(|first| !first.is_empty())
        && words.len() <= most
        && words.iter().map(String::len).sum::<usize>() <= bytes
        && words.iter().all(|word| !word.contains('\0'))
}

fn wrong(message: String) -> Error {
    Error::new(Kind::Usage, Code::Health, message)
}

/// How and how often a workload is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// The question that is asked each time.
    pub probe: Probe,
    /// Seconds between two questions.
    pub interval: u32,
    /// Failures in a row that make the workload unhealthy.
    pub fail: u16,
}

impl Check {
    /// A check with these bounds; the usual ones where none are given.
    ///
    /// # Errors
    /// `E-HEALTH` where the interval is not 1 second to 1 hour, or the failures are not 1 to 100.
    pub fn new(probe: Probe, interval: Option<u32>, fail: Option<u16>) -> Result<Check> {
        let (interval, fail) = (interval.unwrap_or(INTERVAL), fail.unwrap_or(FAIL));
        if !(1..=MAX_INTERVAL).contains(&interval) {
            return Err(wrong("an interval is 1 second to 1 hour".to_owned()));
        }
        if !(1..=MAX_FAIL).contains(&fail) {
            return Err(wrong("failures in a row are 1 to 100".to_owned()));
        }
        if probe == Probe::Tcp(0) {
            return Err(wrong("a port is 1 to 65535".to_owned()));
        }
        Ok(Check {
            probe,
            interval,
            fail,
        })
    }

    /// The longest that an answer is waited for, in milliseconds: the interval, and 5 seconds at most.
    pub fn timeout(&self) -> u64 {
        MAX_TIMEOUT.min(u64::from(self.interval).saturating_mul(1000))
    }
}

/// The health of a workload, as this node keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// How it is asked.
    pub check: Check,
    /// Since when it is unhealthy, in seconds since 1970; none while it is well, or not known to be otherwise.
    pub unhealthy: Option<u64>,
    /// Whether a label of its container asked for the check: then it goes with the label.
    pub by_label: bool,
}

/// Which workload is asked: its subnet, its name there, and when it was attached.
pub type Subject = (super::id::SubnetId, Name, u64);

/// What is known of one workload that is asked.
#[derive(Debug, Clone)]
struct Watched {
    check: Check,
    unhealthy: bool,
    /// When it is asked next, in milliseconds.
    due: u64,
    under_way: bool,
    /// Failures in a row while it is well, successes in a row while it is not.
    streak: u16,
    /// Successes in a row that it has to show next time.
    proof: u16,
    /// When it recovered last.
    recovered: Option<u64>,
    /// Whether it has succeeded since it is asked.
    succeeded: bool,
}

/// The rule over all workloads that are asked. Time is in milliseconds of any clock that does not go back.
#[derive(Debug, Default)]
pub struct Checks {
    watched: BTreeMap<Subject, Watched>,
    under_way: UnderWay,
}

/// How many questions are under way. Commands are counted apart: slow ones would leave no room for the others.
#[derive(Debug, Default)]
struct UnderWay {
    commands: usize,
    others: usize,
}

impl UnderWay {
    /// Whether one more of that kind may begin.
    fn has_room_for(&self, probe: &Probe) -> bool {
        match probe {
            Probe::Exec(_) => self.commands < COMMANDS_AT_ONCE,
            Probe::Tcp(_) | Probe::Http { .. } => self.others < AT_ONCE,
        }
    }

    fn count_of(&mut self, probe: &Probe) -> &mut usize {
        match probe {
            Probe::Exec(_) => &mut self.commands,
            Probe::Tcp(_) | Probe::Http { .. } => &mut self.others,
        }
    }

    fn begins(&mut self, probe: &Probe) {
        let count = self.count_of(probe);
        *count = count.saturating_add(1);
    }

    fn ends(&mut self, probe: &Probe) {
        let count = self.count_of(probe);
        *count = count.saturating_sub(1);
    }
}

/// What a workload has become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It succeeded for the first time since it is asked, and was not unhealthy before.
    Begun,
    /// It answers again.
    Healthy,
    /// It failed as often in a row as its check says.
    Unhealthy,
}

impl Checks {
    /// Takes over what is to be asked now. What is new is asked at a moment of its interval that follows from its name, so
    /// that many of one moment are not asked at once. What goes on is as it was.
    pub fn follow(&mut self, all: BTreeMap<Subject, Health>, now: u64) {
        self.watched.retain(|subject, known| {
            let stays = all.get(subject).is_some_and(|h| h.check == known.check);
            if !stays && known.under_way {
                self.under_way.ends(&known.check.probe);
            }
            stays
        });
        for (subject, health) in all {
            let unhealthy = health.unhealthy.is_some();
            if let Some(known) = self.watched.get_mut(&subject) {
                if known.unhealthy != unhealthy {
                    (known.unhealthy, known.streak) = (unhealthy, 0);
                }
                continue;
            }
            let interval = u64::from(health.check.interval).saturating_mul(1000);
            let spread = subject.1.as_str().bytes();
            let spread = spread.fold(7_u64, |h, b| h.wrapping_mul(31).wrapping_add(b.into()));
            let watched = Watched {
                due: now.saturating_add(spread.checked_rem(interval).unwrap_or_default()),
                check: health.check,
                unhealthy,
                under_way: false,
                streak: 0,
                proof: 1,
                recovered: None,
                succeeded: false,
            };
            self.watched.insert(subject, watched);
        }
    }

    /// Those that are to be asked now, each with its check. No more than [`AT_ONCE`] are under way together, and
    /// [`COMMANDS_AT_ONCE`] commands beside them; what finds no room stays due, and who waits longest comes first.
    pub fn due(&mut self, now: u64) -> Vec<(Subject, Check)> {
        let mut due: Vec<(u64, Subject)> = self
            .watched
            .iter()
            .filter(|(_, w)| !w.under_way && w.due <= now)
            .map(|(subject, w)| (w.due, subject.clone()))
            .collect();
        due.sort();
        let mut begun = Vec::new();
        for (_, subject) in due {
            if let Some(watched) = self.watched.get_mut(&subject)
                && self.under_way.has_room_for(&watched.check.probe)
            {
                let interval = u64::from(watched.check.interval).saturating_mul(1000);
                watched.due = now.saturating_add(interval);
                watched.under_way = true;
                self.under_way.begins(&watched.check.probe);
                begun.push((subject, watched.check.clone()));
            }
        }
        begun
    }

    /// When something is due next of what there is room for.
    pub fn next(&self) -> Option<u64> {
        let is_idle = |w: &&Watched| !w.under_way && self.under_way.has_room_for(&w.check.probe);
        let idle = self.watched.values().filter(is_idle);
        idle.map(|w| w.due).min()
    }

    /// A question could not be put to the workload, so nothing is known: it is as it was.
    pub fn unasked(&mut self, subject: &Subject) {
        if let Some(watched) = self.watched.get_mut(subject).filter(|w| w.under_way) {
            watched.under_way = false;
            self.under_way.ends(&watched.check.probe);
        }
    }

    /// What came of a question, and what that makes of the workload; none where it stays as it was.
    pub fn answered(&mut self, subject: &Subject, well: bool, now: u64) -> Option<Turn> {
        let watched = self.watched.get_mut(subject).filter(|w| w.under_way)?;
        watched.under_way = false;
        self.under_way.ends(&watched.check.probe);
        let is_first = well && !watched.succeeded;
        watched.succeeded |= well;
        if well != watched.unhealthy {
            watched.streak = 0;
            return is_first.then_some(Turn::Begun);
        }
        watched.streak = watched.streak.saturating_add(1);
        let enough = if watched.unhealthy {
            watched.proof
        } else {
            watched.check.fail
        };
        if watched.streak < enough {
            return None;
        }
        (watched.streak, watched.unhealthy) = (0, !well);
        if well {
            watched.recovered = Some(now);
            return Some(Turn::Healthy);
        }
        let is_soon = |at: u64| now.saturating_sub(at) < FORGIVEN;
        watched.proof = match watched.recovered {
            Some(at) if is_soon(at) => watched.proof.saturating_mul(2).min(MAX_PROOF),
            _ => 1,
        };
        Some(Turn::Unhealthy)
    }
}

#[cfg(test)]
mod tests;
