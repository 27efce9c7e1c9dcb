//! Whether this machine's clock can be believed: it is compared with every connected member's, at connect, every 30 s,
//! and every second while nobody has said anything of the clock as it now is.
//!
//! Nothing waits for the clocks to agree. While most members' differ from this one, nothing is signed that a time decides,
//! and both ends say so; once they agree, what has ended may be forgotten. Nor is anything signed before one of those who
//! are there has answered. Where nobody is, the last word stands until the clock is set.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::api::types::{Error, Problem};
use crate::model::id::PeerId;
use crate::node::{Judged, Node, Reading, unix_now_ms};
use crate::p2p::Protocol;
use crate::wire::control::{self, ControlAnswer, ControlRequest};

/// The first of January 2026, seconds since 1970.
const WRITTEN: u64 = 1_767_225_600;

/// Between two comparisons with one member.
const EVERY: Duration = Duration::from_secs(30);
/// Difference above which one of two clocks is wrong.
const MOST: Duration = Duration::from_secs(60);
/// By how much a clock is set where what was known of the others' differences is void.
const SET: Duration = Duration::from_secs(2);
/// How long an answer tells something.
const FRESH: Duration = Duration::from_secs(90);
/// For one question.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long this machine waits for members to come, at the start and when its clock was set, before it believes its clock
/// without them.
const ALONE: Duration = Duration::from_secs(2);

/// What sets a clock right.
const REMEDY: &str = "timedatectl set-ntp true";

/// How far other members' clocks are ahead of this machine's.
#[derive(Debug, Default)]
pub(crate) struct Clocks {
    held: Mutex<Held>,
    /// Told with each answer.
    heard: Notify,
    /// This machine's is contradicted, or was just set far away and is not compared yet.
    contradicted: AtomicBool,
}

#[derive(Debug, Default)]
struct Held {
    /// In milliseconds, and what this machine's clock showed when they were compared.
    offsets: BTreeMap<PeerId, (i64, Reading)>,
    /// Members that are being asked, and what the clock showed then.
    asked: BTreeMap<PeerId, Reading>,
}

impl Held {
    /// What is known of members that are connected, by the clock as it now is.
    fn fresh(&mut self, connected: &[PeerId], now: Reading) -> Vec<(PeerId, i64)> {
        let holds = |of: &Reading| now.at.saturating_duration_since(of.at) < FRESH && now.set_since(of) <= SET;
        self.offsets.retain(|peer, (_, of)| holds(of) && connected.contains(peer));
        self.offsets.iter().map(|(peer, (offset, _))| (*peer, *offset)).collect()
    }

    /// Whether to ask a member now. Of a question by a clock that is no more nothing is learnt.
    fn asks(&mut self, peer: PeerId, now: Reading) -> bool {
        let free = self.asked.get(&peer).is_none_or(|of| now.set_since(of) > SET);
        if free {
            self.asked.insert(peer, now);
        }
        free
    }

    /// The question by that clock is answered, or will not be.
    fn asked(&mut self, peer: PeerId, clock: Reading) {
        if self.asked.get(&peer).is_some_and(|of| of.at == clock.at) {
            self.asked.remove(&peer);
        }
    }
}

impl Clocks {
    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, peer: PeerId, offset: i64, clock: Reading) {
        self.lock().offsets.insert(peer, (offset, clock));
        self.heard.notify_one();
    }

    /// Whether what this machine's clock says is probably untrue.
    pub(crate) fn contradicted(&self) -> bool {
        self.contradicted.load(Ordering::Relaxed)
    }

    /// What is known of members that are connected.
    fn fresh(&self, connected: &[PeerId]) -> Vec<(PeerId, i64)> {
        self.lock().fresh(connected, Reading::now())
    }
}

fn is_off(offset: i64) -> bool {
    offset.unsigned_abs() > u64::try_from(MOST.as_millis()).unwrap_or(u64::MAX)
}

/// Whether most clocks differ from this one, and whether most agree with it. Without any neither holds.
fn verdict(offsets: &[(PeerId, i64)]) -> (bool, bool) {
    let off = offsets.iter().filter(|(_, offset)| is_off(*offset)).count();
    let agree = offsets.len().saturating_sub(off);
    (off > agree, agree > off)
}

/// What is thought of this machine's clock.
#[derive(Debug)]
struct Opinion {
    /// The last word of the others: most of them differ.
    off: bool,
    /// The clock as it was last looked at.
    last: Reading,
    /// When the daemon started, or the clock was set.
    anew: Instant,
    /// It was set far away, and nobody has said anything of it since.
    far: bool,
}

impl Opinion {
    fn new(clock: Reading) -> Opinion {
        Opinion { off: false, last: clock, anew: clock.at, far: false }
    }

    /// Judges the clock, by what is known of the others'.
    fn judge(&mut self, clock: Reading, connected: &[PeerId], known: &[(PeerId, i64)]) -> Judged {
        let set = clock.set_since(&self.last);
        self.last = clock;
        if set > SET {
            self.anew = clock.at;
        }
        let (off, agreed) = verdict(known);
        let alone = connected.is_empty();
        // What was said of a clock that is no more is void; what was said of this one stands, also where who said so is gone.
        if !known.is_empty() || set > MOST {
            self.off = off;
        }
        let waiting = clock.at.saturating_duration_since(self.anew) < ALONE;
        let unheard = known.is_empty() && (!alone || waiting);
        self.far = unheard && (self.far || set > MOST);
        Judged { clock, doubted: self.off || unheard, agreed, seen: connected.iter().copied().collect() }
    }
}

/// Has the node believe nothing of the clock before [`run`] says so.
pub(super) async fn begin(node: &Node) -> anyhow::Result<()> {
    let judged = Opinion::new(Reading::now()).judge(Reading::now(), &[], &[]);
    Ok(node.run(|core| core.clock_judged(judged)).await?)
}

/// Compares, and notices when the clock is set.
pub(crate) async fn run(ctx: Context, stop: CancellationToken) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut opinion = Opinion::new(Reading::now());
    let mut compared = Instant::now();
    let mut unheard = false;
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = tick.tick() => {}
            // The first answer does not wait for the next second.
            () = ctx.clocks.heard.notified(), if unheard => {}
        }
        let members = ctx.table.members();
        let clock = Reading::now();
        let known = ctx.clocks.lock().fresh(&members, clock);
        unheard = known.is_empty();
        let all = compared.elapsed() >= EVERY;
        if all {
            compared = Instant::now();
        }
        // Whoever has not answered is asked again: a question may be lost, or be older than the clock.
        for peer in members.iter().filter(|peer| all || known.binary_search_by_key(*peer, |(of, _)| *of).is_err()) {
            tokio::spawn(compare(ctx.clone(), *peer));
        }
        let judged = opinion.judge(clock, &members, &known);
        ctx.clocks.contradicted.store(opinion.off || opinion.far, Ordering::Relaxed);
        ctx.node.run(move |core| core.clock_judged(judged)).await?;
    }
}

/// Asks one member what time it is, unless it is being asked.
pub(crate) async fn compare(ctx: Context, peer: PeerId) {
    let asked = Reading::now();
    if !ctx.clocks.lock().asks(peer, asked) {
        return;
    }
    let question = control::encode(&ControlRequest::Clock { now_ms: asked.unix_ms });
    let answer = ctx.peers.ask(peer, Protocol::Control, question, PATIENCE).await;
    ctx.clocks.lock().asked(peer, asked);
    if let Ok(Ok(ControlAnswer::Clock { now_ms })) = answer.map(|bytes| control::decode(&bytes)) {
        // By the time that passed, since the clock may have been set meanwhile: then the answer is void.
        let passed = u64::try_from(asked.at.elapsed().as_millis()).unwrap_or(0);
        ctx.clocks.note(peer, difference(now_ms, asked.unix_ms.saturating_add(passed / 2)), asked);
    }
}

/// Answers a member that compares, and learns from its question as well.
pub(crate) fn answer(ctx: &Context, peer: PeerId, theirs_ms: u64) -> ControlAnswer {
    let clock = Reading::now();
    ctx.clocks.note(peer, difference(theirs_ms, clock.unix_ms), clock);
    ControlAnswer::Clock { now_ms: unix_now_ms() }
}

fn difference(theirs: u64, ours: u64) -> i64 {
    let size = i64::try_from(theirs.abs_diff(ours)).unwrap_or(i64::MAX);
    if theirs >= ours { size } else { -size }
}

/// What `status` says of clocks that differ.
pub(crate) fn problems(ctx: &Context, name: impl Fn(PeerId) -> String) -> Vec<Problem> {
    let known = ctx.clocks.fresh(&ctx.table.members());
    let (mine, _) = verdict(&known);
    let told = known.into_iter().filter(|(_, offset)| is_off(*offset)).map(|(peer, offset)| Problem {
        code: "E-CLOCK".into(),
        severity: if mine { "error" } else { "warning" }.into(),
        message: format!(
            "the clock of {} is {} {} this machine's{}",
            name(peer),
            span(offset.unsigned_abs() / 1000),
            if offset > 0 { "ahead of" } else { "behind" },
            if mine { "; until this one is set, no grants are renewed here" } else { "" }
        ),
        help: if mine { REMEDY.into() } else { format!("on {}: {REMEDY}", name(peer)) },
    });
    impossible(unix_now_ms() / 1000).into_iter().chain(told).collect()
}

/// Nobody has to be asked about a clock that says a time before this program was written: it has not been set yet.
fn impossible(now: u64) -> Option<Problem> {
    (now < WRITTEN).then(|| Problem {
        code: "E-CLOCK".into(),
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
    matches!(code, "E-NOT-MEMBER" | "E-GRANT-EXPIRES" | "E-NO-TARGET" | "E-NAME-TAKEN" | "E-NAME-CONTESTED")
}

/// While this machine's clock is not believed, to set it is the only remedy for what follows from it.
pub(crate) fn blame(ctx: &Context, problems: &mut [Problem]) {
    for problem in problems.iter_mut().filter(|p| ctx.clocks.contradicted() && is_by_clock(&p.code)) {
        problem.message += ", by this machine's clock";
        problem.help = REMEDY.into();
    }
}

/// The same for a verb that failed.
pub(crate) fn blamed(ctx: &Context, mut error: Error) -> Error {
    if ctx.clocks.contradicted() && is_by_clock(&error.code) {
        error.message += ", by this machine's clock, which the other members contradict";
        error.hint = REMEDY.into();
    }
    error
}

/// Seconds as people say them.
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
    fn most_members_decide_whose_clock_is_wrong() {
        let peer = |n: u8| PeerId([n; 32]);
        let day = 86_400_000;
        assert_eq!(verdict(&[]), (false, false));
        assert_eq!(verdict(&[(peer(1), 900)]), (false, true));
        assert_eq!(verdict(&[(peer(1), 60_000)]), (false, true), "a minute is ordinary");
        assert_eq!(verdict(&[(peer(1), -day)]), (true, false));
        assert_eq!(verdict(&[(peer(1), day), (peer(2), 0)]), (false, false), "one against one tells nothing");
        assert_eq!(verdict(&[(peer(1), day), (peer(2), 0), (peer(3), -5)]), (false, true));
    }

    const YEARS: i64 = 730 * 86_400;

    /// A machine and what it knows of others, whose clock is set and whose seconds pass as the test says.
    struct Machine {
        start: Instant,
        passed: u64,
        ahead: i64,
        held: Held,
        opinion: Opinion,
        connected: Vec<PeerId>,
    }

    impl Machine {
        fn new() -> Machine {
            let start = Instant::now();
            let opinion = Opinion::new(Reading { unix_ms: 1_800_000_000_000, at: start });
            Machine { start, passed: 0, ahead: 0, held: Held::default(), opinion, connected: vec![] }
        }

        /// Long after the start, with one member that agrees.
        fn in_peace() -> Machine {
            let mut machine = Machine::new();
            machine.connected = vec![PeerId([1; 32])];
            for _ in 0..100 {
                machine.answer();
                machine.second();
            }
            assert!(!machine.doubts());
            machine
        }

        fn clock(&self) -> Reading {
            let unix_ms = (1_800_000_000 + self.passed).saturating_add_signed(self.ahead) * 1000;
            Reading { unix_ms, at: self.start + Duration::from_secs(self.passed) }
        }

        /// The one member, whose clock is right, says what it shows.
        fn answer(&mut self) {
            let offset = (-self.ahead * 1000, self.clock());
            self.held.offsets.insert(PeerId([1; 32]), offset);
        }

        /// A second passes; whether the clock is doubted then.
        fn second(&mut self) -> bool {
            self.passed += 1;
            self.doubts()
        }

        fn doubts(&mut self) -> bool {
            let clock = self.clock();
            let known = self.held.fresh(&self.connected, clock);
            self.opinion.judge(clock, &self.connected, &known).doubted
        }
    }

    #[test]
    fn a_clock_that_was_set_is_doubted_until_somebody_answers_by_it() {
        for ahead in [YEARS, -YEARS, 90, -5] {
            let mut machine = Machine::in_peace();
            machine.ahead = ahead;
            // What was answered by the clock of before says nothing of this one, however long nobody answers.
            assert!((0..300).all(|_| machine.second()), "{ahead}");
            machine.answer();
            assert_eq!(machine.second(), ahead.abs() > 60, "{ahead}");
            machine.ahead = 0;
            assert!(machine.second(), "{ahead}");
            machine.answer();
            assert!(!machine.second(), "{ahead}");
        }
    }

    #[test]
    fn a_clock_is_no_better_because_whoever_said_so_is_gone() {
        let mut machine = Machine::in_peace();
        machine.ahead = YEARS;
        machine.second();
        machine.answer();
        assert!(machine.second());
        machine.connected.clear();
        assert!((0..300).all(|_| machine.second()), "nobody has said that it is right");
        // Set right with nobody there to say so: what was said was of another clock.
        machine.ahead = 0;
        assert_eq!((0..10).position(|_| !machine.second()), Some(2));
    }

    #[test]
    fn an_answer_that_is_too_old_does_not_make_a_clock_right() {
        let mut machine = Machine::in_peace();
        machine.ahead = YEARS;
        machine.second();
        machine.answer();
        assert!((0..300).all(|_| machine.second()), "it is there and answers no more");
    }

    #[test]
    fn a_machine_that_starts_waits_a_moment_for_others() {
        let mut alone = Machine::new();
        assert_eq!((0..10).position(|_| !alone.second()), Some(1));
        let mut late = Machine::new();
        late.connected = vec![PeerId([1; 32])];
        assert!((0..10).all(|_| late.second()), "it has not been answered");
        late.answer();
        assert!(!late.second());
    }

    #[test]
    fn a_question_is_asked_again_when_it_is_answered_or_the_clock_was_set() {
        let (mut machine, peer) = (Machine::in_peace(), PeerId([1; 32]));
        let first = machine.clock();
        assert!(machine.held.asks(peer, first) && !machine.held.asks(peer, first));
        machine.passed += 1;
        assert!(!machine.held.asks(peer, machine.clock()), "it is under way");
        machine.ahead = YEARS;
        let second = machine.clock();
        assert!(machine.held.asks(peer, second));
        machine.held.asked(peer, first);
        assert!(!machine.held.asks(peer, second), "the first one's end is not the second's");
        machine.held.asked(peer, second);
        assert!(machine.held.asks(peer, second));
    }

    #[test]
    fn a_clock_that_was_never_set_is_told_without_asking_anybody() {
        assert_eq!([impossible(0).is_some(), impossible(WRITTEN - 1).is_some()], [true; 2]);
        assert_eq!(impossible(WRITTEN), None);
    }

    #[test]
    fn differences_are_told_in_words() {
        assert_eq!(difference(5000, 9000), -4000);
        assert_eq!(difference(u64::MAX, 0), i64::MAX);
        assert_eq!(
            [span(61), span(200), span(7200), span(200 * 86_400)],
            ["61 seconds", "3 minutes", "2 hours", "200 days"]
        );
    }
}
