//! How much of a data stream may be under way. Pure: time is an argument.
//!
//! A stream loses nothing, so whatever is written to it waits: in the multiplexer, in the encryption, in the kernel's send buffer,
//! and on the way through a relay in the relay's buffers, too. None of them can drop a packet, and where the line loses some of what
//! is sent, together they hold seconds of it. So the reader tells how far it has read ([`Receipts`]), from end to end, and the
//! writer keeps no more under way than the line carries in a round trip and a little longer ([`Pace`]): bytes a second, the most that
//! were seen of late, times the shortest round trip and half of it, at least [`SLACK`], more. The rest waits in the ring, whose
//! packets can be dropped. What is more than a round trip of bytes is queue somewhere; what is less leaves the line idle.
//!
//! The shortest round trip is measured anew once it was not seen for [`OLD`]: for one round trip less is under way, so that every
//! queue on the way drains (as BBR does, draft-ietf-ccwg-bbr). A reader that stops saying anything holds nobody up for long
//! ([`DEAF`]), and one that never has, because it does not know receipts, is written to as fast as the stream takes it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Bytes under way before anything is known of the line, and after a silence.
const FIRST: u64 = 128 * 1024;
/// The least: some receipts' worth, which is 170 ms of 3 Mbit/s.
const LEAST: u64 = 64 * 1024;
/// The most: 1.3 Gbit/s at 100 ms.
const MOST: u64 = 16 << 20;
/// What a line may hold beyond its shortest round trip, at least: jitter, and a retransmission, leave no gap.
const SLACK: Duration = Duration::from_millis(25);
/// The least time over which a rate is measured.
const SAMPLE: Duration = Duration::from_millis(20);
/// For how long the highest rate counts: this, and up to twice as long.
const RECENT: Duration = Duration::from_secs(1);
/// When the shortest round trip is measured anew.
const OLD: Duration = Duration::from_secs(10);
/// How long that may take.
const DRAIN: Duration = Duration::from_secs(1);
/// After a silence of this long nothing is known of the line but its round trip.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a full line waits for a receipt: then it counts as empty, because none may come. Where none ever came, no more are
/// waited for.
const DEAF: Duration = Duration::from_secs(3);
/// The most writes whose time is remembered, and the least time between two.
const MARKS: (usize, Duration) = (256, Duration::from_millis(1));

/// A receipt is due for so many bytes.
const EVERY: u64 = 8 * 1024;
/// The least time between two.
const APART: Duration = Duration::from_millis(2);

/// The writer's side of one stream.
#[derive(Debug)]
pub(super) struct Pace {
    sent: u64,
    seen: u64,
    /// Where writes began, and when; the first one is that of the byte that was seen last.
    marks: VecDeque<(u64, Instant)>,
    wrote: Instant,
    /// The shortest round trip, and when it was seen.
    shortest: Option<(Duration, Instant)>,
    /// The highest rate of this period and of the one before, in bytes a second; and when this one began.
    rates: (u64, u64, Instant),
    /// Where and when the rate's sample began, and whether the allowance was used since.
    sample: (u64, Instant),
    is_used: bool,
    allowed: u64,
    full_since: Option<Instant>,
    drain: Option<Drain>,
    reader: Reader,
}

/// What is known of the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// No receipt came yet.
    New,
    /// It sends receipts, which bound what is under way.
    Tells,
    /// None came for as long as a full line waits: it may be of a version that sends none.
    Mute,
}

/// A measurement of the shortest round trip under way.
#[derive(Debug, Clone, Copy)]
struct Drain {
    since: Instant,
    /// What is written behind this finds the line drained; none while it drains.
    from: Option<u64>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Pace {
        Pace {
            sent: 0,
            seen: 0,
            marks: VecDeque::with_capacity(MARKS.0),
            wrote: now,
            shortest: None,
            rates: (0, 0, now),
            sample: (0, now),
            is_used: false,
            allowed: FIRST,
            full_since: None,
            drain: None,
            reader: Reader::New,
        }
    }

    /// How many bytes may be written now. Where it is none, the answer changes by a receipt, or at [`due`](Self::due).
    pub(super) fn room(&mut self, now: Instant) -> u64 {
        let is_deaf = |since: Instant| now.saturating_duration_since(since) >= DEAF;
        if self.full_since.is_some_and(is_deaf) {
            self.seen = self.sent;
            self.marks.clear();
            self.full_since = None;
            if self.reader == Reader::New {
                self.reader = Reader::Mute;
            }
        }
        if self.reader == Reader::Mute {
            return MOST;
        }
        let under_way = self.under_way();
        if let Some(drain) = &mut self.drain
            && drain.from.is_none()
            && under_way <= drained(self.rates.0.max(self.rates.1), self.shortest)
        {
            drain.from = Some(self.sent);
        }
        let room = self.limit().saturating_sub(under_way);
        if room == 0 {
            self.full_since.get_or_insert(now);
        }
        room
    }

    /// When a full line counts as empty, where no receipt comes before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.full_since.map(|since| since + DEAF)
    }

    /// So many bytes are about to be written.
    pub(super) fn write(&mut self, now: Instant, bytes: usize) {
        if now.saturating_duration_since(self.wrote) > SILENCE {
            self.allowed = self.allowed.min(FIRST);
            (self.rates, self.drain) = ((0, 0, now), None);
            (self.sample, self.is_used) = ((self.seen, now), false);
        }
        self.wrote = now;
        let last = self.marks.back().map(|(_, at)| *at);
        let is_apart = last.is_none_or(|at| now.saturating_duration_since(at) >= MARKS.1);
        if is_apart && self.marks.len() < MARKS.0 {
            self.marks.push_back((self.sent, now));
        }
        self.sent = self
            .sent
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
        self.is_used |= self.under_way().saturating_mul(2) >= self.limit();
    }

    /// The reader has read so many bytes of the stream in all. What it cannot have read is ignored, as is what it said before.
    pub(super) fn receipt(&mut self, now: Instant, seen: u64) {
        if seen <= self.seen || seen > self.sent {
            return;
        }
        self.seen = seen;
        self.full_since = None;
        self.reader = Reader::Tells;
        while self.marks.get(1).is_some_and(|(from, _)| *from < seen) {
            self.marks.pop_front();
        }
        let Some(trip) = self
            .marks
            .front()
            .map(|(_, at)| now.saturating_duration_since(*at))
        else {
            return;
        };
        self.note_trip(now, trip);
        self.note_rate(now);
    }

    fn under_way(&self) -> u64 {
        self.sent.saturating_sub(self.seen)
    }

    fn limit(&self) -> u64 {
        match self.drain {
            Some(_) => drained(self.rates.0.max(self.rates.1), self.shortest).min(self.allowed),
            None => self.allowed,
        }
    }

    fn note_trip(&mut self, now: Instant, trip: Duration) {
        let is_clean = |drain: &Drain| drain.from.is_some_and(|from| self.seen > from);
        if self.drain.as_ref().is_some_and(is_clean) {
            (self.shortest, self.drain) = (Some((trip, now)), None);
            return;
        }
        match self.shortest {
            Some((shortest, at)) if trip > shortest => {
                let is_over = |drain: Drain| now.saturating_duration_since(drain.since) >= DRAIN;
                if self.drain.is_some_and(is_over) {
                    // Nothing came of it: as good as before is all that is known.
                    (self.shortest, self.drain) = (Some((shortest, now)), None);
                } else if self.drain.is_none() && now.saturating_duration_since(at) >= OLD {
                    let since = now;
                    self.drain = Some(Drain { since, from: None });
                }
            }
            _ => self.shortest = Some((trip, now)),
        }
    }

    fn note_rate(&mut self, now: Instant) {
        let Some((shortest, _)) = self.shortest else {
            return;
        };
        let (from, begun) = self.sample;
        let took = now.saturating_duration_since(begun);
        if took < SAMPLE.max(shortest) {
            return;
        }
        let bytes = u128::from(self.seen.saturating_sub(from)) * 1_000_000;
        let rate = u64::try_from(bytes / took.as_micros().max(1)).unwrap_or(u64::MAX);
        let (highest, _, since) = &mut self.rates;
        if now.saturating_duration_since(*since) >= RECENT {
            self.rates = (rate, *highest, now);
        } else {
            *highest = (*highest).max(rate);
        }
        self.sample = (self.seen, now);
        let highest = self.rates.0.max(self.rates.1);
        let carried = carried(highest, shortest + SLACK.max(shortest / 2)).clamp(LEAST, MOST);
        // A line that was not filled shows no less than what it can.
        if std::mem::take(&mut self.is_used) || carried > self.allowed {
            self.allowed = carried;
        }
    }
}

/// Bytes that a rate moves in a time.
fn carried(rate: u64, time: Duration) -> u64 {
    let bytes = u128::from(rate) * time.as_micros() / 1_000_000;
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

/// What is under way while the line drains: three quarters of what it holds without any queue.
fn drained(rate: u64, shortest: Option<(Duration, Instant)>) -> u64 {
    let shortest = shortest.map_or(Duration::ZERO, |(shortest, _)| shortest);
    (carried(rate, shortest) / 4 * 3).max(2 * EVERY)
}

/// The reader's side of one stream: what is to be told of how far it has read.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// How the writer calls the stream; none until it has said so.
    stream: Option<u64>,
    read: u64,
    told: u64,
    last: Option<Instant>,
}

impl Receipts {
    /// So many bytes more were read.
    pub(super) fn read(&mut self, bytes: usize) {
        self.read = self
            .read
            .saturating_add(u64::try_from(bytes).unwrap_or(u64::MAX));
    }

    /// The writer says what it calls the stream.
    pub(super) fn named(&mut self, stream: u64) {
        self.stream = Some(stream);
    }

    /// When a receipt is due; none until there is something to tell.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let is_due = self.stream.is_some() && self.read.saturating_sub(self.told) >= EVERY;
        is_due.then(|| self.last.map_or(now, |last| last + APART))
    }

    /// The stream and the bytes read of it, where a receipt is due.
    pub(super) fn take(&mut self, now: Instant) -> Option<(u64, u64)> {
        self.due(now).filter(|due| *due <= now)?;
        (self.told, self.last) = (self.read, Some(now));
        self.stream.map(|stream| (stream, self.read))
    }
}

#[cfg(test)]
mod tests;
