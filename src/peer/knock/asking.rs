//! The test itself: a new socket is shown to a witness, then two are asked to knock at it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::{Knocks, Member, Output, Unsure};
use crate::backoff::Backoff;
use crate::model::id::PeerId;
use crate::peer::Entropy;
use crate::wire::datagram::Knock;
use crate::wire::paths::Filtering;

/// Paths are given so long to settle before they are tested by.
const SETTLE: Duration = Duration::from_secs(2);
/// Addresses of our own for which it is tested.
const LOCALS: usize = 4;
/// From announcing a knock to sending it, so that the word is there first.
const BEFORE_KNOCK: Duration = Duration::from_millis(60);
/// From the knock to the next announcement, where there was no answer.
const AGAIN: Duration = Duration::from_millis(340);
/// Announcements and knocks, in turn, that one witness gets: four of each.
const STEPS: u32 = 8;
/// Witnesses that are tried in one test.
const WITNESSES: usize = 3;
/// Members at other addresses that are asked in one test.
const STRANGERS: usize = 3;
/// How long knocks are waited for.
const WAIT: Duration = Duration::from_secs(2);
/// A question that was not answered is asked again after this.
const ASK_AGAIN: Duration = Duration::from_millis(700);
/// From a test that found something closed to the one that makes sure: those who are asked knock once a minute.
const CONFIRM: Duration = Duration::from_secs(65);
/// From a result to the next test.
const REPEAT: Duration = Duration::from_secs(6 * 3600);
/// The pauses after tests that told nothing.
const FAILED: Backoff = Backoff::new(Duration::from_secs(65), Duration::from_secs(3600));

/// What is known of one address of ours.
#[derive(Debug)]
pub(super) struct Round {
    found: Filtering,
    /// When the next test is due; none while there is nobody to test with.
    due: Option<Instant>,
    /// No test before that.
    not_before: Instant,
    /// What the first of two tests told.
    first: Option<Filtering>,
    failures: u32,
    /// Members that helped in the last test: others come first in the next.
    used: Vec<PeerId>,
}

/// A test that is under way.
#[derive(Debug)]
pub(super) struct Run {
    local: Option<IpAddr>,
    helper: Option<u16>,
    due: Instant,
    stage: Stage,
    witness: (PeerId, SocketAddrV4),
    /// Where the socket has sent to: the witnesses so far.
    shown: Vec<SocketAddrV4>,
    /// Who may be shown the socket where this one does not answer.
    witnesses: Vec<(PeerId, SocketAddrV4)>,
    /// Who may be asked next, of those at another address.
    strangers: Vec<PeerId>,
}

#[derive(Debug)]
enum Stage {
    /// The witness is shown the socket.
    Showing { token: u64, step: u32 },
    /// Knocks are waited for.
    Waiting {
        mapped: SocketAddr,
        until: Instant,
        is_second: bool,
        asked: Vec<Asked>,
    },
}

/// One that was asked to knock.
#[derive(Debug)]
struct Asked {
    of: PeerId,
    token: u64,
    /// The witness, from another port; else a stranger.
    other_port: bool,
    answer: Option<Answer>,
    came: Option<SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Sent,
    Refused,
}

impl Round {
    fn new(now: Instant) -> Round {
        Round {
            found: Filtering::Unknown,
            due: Some(now),
            not_before: now,
            first: None,
            failures: 0,
            used: Vec::new(),
        }
    }
}

impl Run {
    /// The tokens of knocks that have not come.
    pub(super) fn expected(&self) -> impl Iterator<Item = u64> {
        let asked = match &self.stage {
            Stage::Waiting { asked, .. } => asked.as_slice(),
            Stage::Showing { .. } => &[],
        };
        let missing = asked.iter().filter(|asked| asked.came.is_none());
        missing.map(|asked| asked.token)
    }

    /// What the knocks that came, and those that did not, tell.
    fn result(&self) -> Result<Filtering, Unsure> {
        let Stage::Waiting { asked, .. } = &self.stage else {
            return Err(Unsure::NoAnswer);
        };
        let (mut is_far, mut is_near) = (false, false);
        for from in asked.iter().filter_map(|asked| asked.came) {
            let mut shown = self.shown.iter().map(|to| SocketAddr::V4(*to));
            let is_strange = shown.clone().all(|to| to.ip() != from.ip());
            is_far |= is_strange;
            is_near |= !is_strange && shown.all(|to| to != from);
        }
        let missed = |other_port: bool| {
            let is_missed = |asked: &Asked| {
                asked.other_port == other_port
                    && asked.came.is_none()
                    && asked.answer == Some(Answer::Sent)
            };
            asked.iter().any(is_missed)
        };
        match (is_far, is_near) {
            (true, _) => Ok(Filtering::Independent),
            (false, true) if missed(false) => Ok(Filtering::AddressDependent),
            (false, true) => Err(Unsure::NoStranger),
            (false, false) if missed(true) => Ok(Filtering::AddressAndPortDependent),
            (false, false) => Err(Unsure::NoKnock),
        }
    }

    /// Whether nothing more is to be waited for.
    fn is_over(&self) -> bool {
        let Stage::Waiting { asked, .. } = &self.stage else {
            return false;
        };
        let is_done = |asked: &Asked| asked.came.is_some() || asked.answer == Some(Answer::Refused);
        self.result() == Ok(Filtering::Independent) || asked.iter().all(is_done)
    }
}

/// The greater, the more is let in.
fn openness(filtering: Filtering) -> u8 {
    match filtering {
        Filtering::Unknown => 0,
        Filtering::AddressAndPortDependent => 1,
        Filtering::AddressDependent => 2,
        Filtering::Independent => 3,
    }
}

fn more_open(one: Filtering, other: Filtering) -> Filtering {
    if openness(one) >= openness(other) {
        one
    } else {
        other
    }
}

/// Whether an address is one of a local network, or of a carrier's behind its NAT: who is there may stand on our side of it.
fn is_near(address: SocketAddrV4) -> bool {
    let ip: Ipv4Addr = *address.ip();
    ip.is_private()
        || ip.is_loopback()
        || ip.is_link_local()
        || matches!(ip.octets(), [100, 64..=127, ..])
}

fn token(entropy: Entropy<'_>) -> u64 {
    let mut bytes = [0; 8];
    entropy(&mut bytes);
    u64::from_be_bytes(bytes)
}

impl Knocks {
    /// A path came up or changed: there may be members to test with.
    pub fn news(&mut self, now: Instant) {
        let look = self.look.get_or_insert(now + SETTLE);
        *look = (*look).min(now + SETTLE);
    }

    /// This machine may be elsewhere: nothing holds that was found by an address of ours which `stays` does not name, and a
    /// test by it is given up.
    pub fn moved(&mut self, now: Instant, stays: impl Fn(Option<IpAddr>) -> bool) {
        if self.run.as_ref().is_some_and(|run| !stays(run.local)) {
            self.end_run();
        }
        let gone = self.rounds.iter_mut().filter(|(local, _)| !stays(**local));
        for (_, round) in gone {
            (round.found, round.first, round.failures) = (Filtering::Unknown, None, 0);
            round.due = None;
        }
        self.news(now);
    }

    /// When [`handle_timeout`](Self::handle_timeout) is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.run {
            Some(run) => Some(run.due),
            None => {
                let rounds = self.rounds.values().filter_map(|round| round.due);
                rounds.chain(self.look).min()
            }
        }
    }

    /// Does what is due by `now`, with these members.
    pub fn handle_timeout(&mut self, now: Instant, members: &[Member], entropy: Entropy<'_>) {
        if self.run.is_none() {
            if self.look.is_some_and(|at| at <= now) {
                self.look = None;
                self.look_around(now, members);
            }
            let is_due = |round: &Round| round.due.is_some_and(|due| due <= now);
            let due = self.rounds.iter().find(|(_, round)| is_due(round));
            if let Some(local) = due.map(|(local, _)| *local) {
                self.begin(now, local, members, entropy);
            }
            return;
        }
        if self.run.as_ref().is_some_and(|run| run.due <= now) {
            self.go_on(now, entropy);
        }
    }

    /// The socket that [`Output::Open`] wanted is open, or could not be opened.
    pub fn opened(&mut self, now: Instant, helper: Option<u16>) {
        match (&mut self.run, helper) {
            (Some(run), Some(helper)) if run.helper.is_none() => run.helper = Some(helper),
            (_, Some(helper)) => self.outputs.push_back(Output::Close { helper }),
            (Some(_), None) => self.finish(now, Err(Unsure::NoAnswer)),
            (None, None) => {}
        }
    }

    /// A round for each address of ours that leads to a member, as soon as it may be.
    fn look_around(&mut self, now: Instant, members: &[Member]) {
        for member in members.iter().filter(|member| member.at.is_some()) {
            if self.rounds.len() >= LOCALS && !self.rounds.contains_key(&member.local) {
                let leads = |local: &Option<IpAddr>| members.iter().any(|m| m.local == *local);
                self.rounds.retain(|local, _| leads(local));
                if self.rounds.len() >= LOCALS {
                    continue;
                }
            }
            let round = self
                .rounds
                .entry(member.local)
                .or_insert_with(|| Round::new(now));
            if round.due.is_none() {
                round.due = Some(round.not_before.max(now));
            }
        }
    }

    /// A test by that address of ours.
    fn begin(
        &mut self,
        now: Instant,
        local: Option<IpAddr>,
        members: &[Member],
        entropy: Entropy<'_>,
    ) {
        let Some(round) = self.rounds.get_mut(&local) else {
            return;
        };
        // Also where the test is given up: those who are asked knock once a minute.
        round.not_before = now + CONFIRM;
        let used = |id: PeerId| round.used.contains(&id);
        let mut witnesses: Vec<(PeerId, SocketAddrV4)> = members
            .iter()
            .filter(|member| member.local == local)
            .filter_map(|member| Some((member.id, member.at?)))
            .collect();
        witnesses.sort_by_key(|(id, at)| (is_near(*at), used(*id), *id));
        // Among those on the other side of the NAT, one on our side is no stranger.
        let is_far = |at: Option<SocketAddrV4>| at.is_none_or(|at| !is_near(at));
        let needs_far = witnesses.first().is_some_and(|(_, at)| !is_near(*at));
        witnesses.retain(|(_, at)| !needs_far || !is_near(*at));
        let mut strangers: Vec<&Member> = members
            .iter()
            .filter(|member| !needs_far || is_far(member.at))
            .collect();
        strangers.sort_by_key(|member| (member.at.is_none(), used(member.id), member.id));
        // The last is taken first.
        let strangers: Vec<(PeerId, Option<SocketAddrV4>)> =
            strangers.iter().rev().map(|m| (m.id, m.at)).collect();
        witnesses.truncate(WITNESSES);
        witnesses.reverse();
        let Some(witness) = witnesses.pop() else {
            round.due = None;
            if round.found == Filtering::Unknown {
                let (filtering, unsure) = (Filtering::Unknown, Unsure::NoWitness);
                self.outputs.push_back(Output::Found {
                    local,
                    filtering,
                    unsure,
                });
            }
            return;
        };
        let differs = |(id, at): &(PeerId, Option<SocketAddrV4>)| {
            *id != witness.0 && at.is_none_or(|at| at.ip() != witness.1.ip())
        };
        let strangers: Vec<PeerId> = strangers
            .into_iter()
            .filter(differs)
            .map(|(id, _)| id)
            .collect();
        let surplus = strangers.len().saturating_sub(STRANGERS);
        self.stats.tests = self.stats.tests.saturating_add(1);
        self.run = Some(Run {
            local,
            helper: None,
            due: now,
            stage: Stage::Showing {
                token: token(entropy),
                step: 0,
            },
            witness,
            shown: vec![witness.1],
            witnesses,
            strangers: strangers.into_iter().skip(surplus).collect(),
        });
        self.outputs.push_back(Output::Open);
    }

    /// The next step of the test.
    fn go_on(&mut self, now: Instant, entropy: Entropy<'_>) {
        let Some(run) = &mut self.run else { return };
        let Some(helper) = run.helper else { return };
        match &mut run.stage {
            Stage::Showing { step, .. } if *step >= STEPS => match run.witnesses.pop() {
                Some(next) => {
                    let former = std::mem::replace(&mut run.witness, next);
                    run.shown.push(next.1);
                    // The socket has sent to both: neither is a stranger to it.
                    run.strangers.retain(|id| *id != former.0 && *id != next.0);
                    run.stage = Stage::Showing {
                        token: token(entropy),
                        step: 0,
                    };
                    run.due = now;
                }
                None => self.finish(now, Err(Unsure::NoAnswer)),
            },
            Stage::Showing { token, step } => {
                let (to, is_word) = (run.witness, step.is_multiple_of(2));
                let token = *token;
                *step = step.saturating_add(1);
                run.due = now + if is_word { BEFORE_KNOCK } else { AGAIN };
                let local = run.local;
                self.outputs.push_back(match is_word {
                    true => Output::Say {
                        to: to.0,
                        word: Knock::Expect { token },
                    },
                    false => Output::Show {
                        helper,
                        to: to.1,
                        local,
                        token,
                    },
                });
            }
            Stage::Waiting { until, .. } if *until <= now => {
                let result = run.result();
                self.finish(now, result);
            }
            Stage::Waiting {
                mapped,
                until,
                is_second,
                asked,
            } => {
                run.due = *until;
                if !std::mem::replace(is_second, true) {
                    let silent = asked
                        .iter()
                        .filter(|asked| asked.answer.is_none() && asked.came.is_none());
                    self.outputs
                        .extend(silent.map(|asked| asked.question(*mapped)));
                }
            }
        }
    }

    /// The witness says where it sees the new socket.
    pub(super) fn on_seen(
        &mut self,
        now: Instant,
        from: PeerId,
        of: u64,
        at: SocketAddr,
        entropy: Entropy<'_>,
    ) {
        let run = self.run.as_mut().filter(|run| run.witness.0 == from);
        let Some(run) =
            run.filter(|run| matches!(run.stage, Stage::Showing { token, .. } if token == of))
        else {
            return self.stray();
        };
        let mut asked = vec![Asked::new(from, true, entropy)];
        asked.extend(run.strangers.pop().map(|id| Asked::new(id, false, entropy)));
        self.outputs
            .extend(asked.iter().map(|asked| asked.question(at)));
        run.due = now + ASK_AGAIN;
        run.stage = Stage::Waiting {
            mapped: at,
            until: now + WAIT,
            is_second: false,
            asked,
        };
    }

    fn asked(&mut self, from: PeerId, of: u64) -> Option<&mut Asked> {
        let Stage::Waiting { asked, .. } = &mut self.run.as_mut()?.stage else {
            return None;
        };
        asked
            .iter_mut()
            .find(|asked| asked.token == of && asked.of == from)
    }

    pub(super) fn on_sent(&mut self, now: Instant, from: PeerId, of: u64) {
        match self.asked(from, of) {
            Some(asked) => asked.answer = Some(Answer::Sent),
            None => self.stray(),
        }
        self.end_if_over(now);
    }

    /// One does not knock: another stranger is asked in its place.
    pub(super) fn on_refused(&mut self, now: Instant, from: PeerId, of: u64, entropy: Entropy<'_>) {
        let Some(refused) = self.asked(from, of) else {
            return self.stray();
        };
        let is_first = refused.answer.replace(Answer::Refused).is_none();
        let is_stranger = !refused.other_port;
        if let Some(run) = self.run.as_mut().filter(|_| is_first && is_stranger)
            && let Some(next) = run.strangers.pop()
            && let Stage::Waiting {
                mapped,
                until,
                asked,
                ..
            } = &mut run.stage
        {
            let another = Asked::new(next, false, entropy);
            self.outputs.push_back(another.question(*mapped));
            asked.push(another);
            *until = now + WAIT;
            run.due = run.due.max(*until);
        }
        self.end_if_over(now);
    }

    /// A knock came; whether it is one of those that were asked for, at the socket that they were for.
    pub(super) fn on_knock(
        &mut self,
        now: Instant,
        of: u64,
        from: SocketAddr,
        helper: Option<u16>,
    ) -> bool {
        let Some(run) = self
            .run
            .as_mut()
            .filter(|run| helper.is_some() && run.helper == helper)
        else {
            return false;
        };
        let Stage::Waiting { asked, .. } = &mut run.stage else {
            return false;
        };
        let Some(asked) = asked
            .iter_mut()
            .find(|asked| asked.token == of && asked.came.is_none())
        else {
            return false;
        };
        asked.came = Some(SocketAddr::new(from.ip().to_canonical(), from.port()));
        self.end_if_over(now);
        true
    }

    fn end_if_over(&mut self, now: Instant) {
        if let Some(run) = &self.run
            && run.is_over()
        {
            let result = run.result();
            self.finish(now, result);
        }
    }

    /// Gives up what is under way; the addresses of its members, and of ours.
    fn end_run(&mut self) -> Option<Run> {
        let run = self.run.take()?;
        self.outputs
            .extend(run.helper.map(|helper| Output::Close { helper }));
        Some(run)
    }

    /// The test is over.
    fn finish(&mut self, now: Instant, result: Result<Filtering, Unsure>) {
        let Some(run) = self.end_run() else { return };
        let Some(round) = self.rounds.get_mut(&run.local) else {
            return;
        };
        round.used = vec![run.witness.0];
        if let Stage::Waiting { asked, .. } = &run.stage {
            round.used.extend(asked.iter().map(|asked| asked.of));
        }
        let before = round.first.take();
        let filtering = match (result, before) {
            (Ok(found), before) => {
                round.failures = 0;
                let found = more_open(found, before.unwrap_or(found));
                let is_sure = before.is_some() || found == Filtering::Independent;
                round.not_before = now + CONFIRM;
                round.due = Some(now + if is_sure { REPEAT } else { CONFIRM });
                round.first = (!is_sure).then_some(found);
                // What was known to be more open is not given up before it is sure.
                if is_sure {
                    found
                } else {
                    more_open(found, round.found)
                }
            }
            // The first of the two counts, for want of a better one.
            (Err(_), Some(found)) => {
                round.due = Some(now + REPEAT);
                more_open(found, Filtering::Unknown)
            }
            (Err(_), None) => {
                round.not_before = now + FAILED.pause(round.failures);
                round.due = Some(round.not_before);
                round.failures = round.failures.saturating_add(1);
                round.found
            }
        };
        round.found = filtering;
        self.outputs.push_back(Output::Found {
            local: run.local,
            filtering,
            unsure: result.err().unwrap_or_default(),
        });
    }
}

impl Asked {
    fn new(of: PeerId, other_port: bool, entropy: Entropy<'_>) -> Asked {
        Asked {
            of,
            token: token(entropy),
            other_port,
            answer: None,
            came: None,
        }
    }

    fn question(&self, mapped: SocketAddr) -> Output {
        Output::Say {
            to: self.of,
            word: Knock::Ask {
                token: self.token,
                to: mapped,
                other_port: self.other_port,
            },
        }
    }
}
