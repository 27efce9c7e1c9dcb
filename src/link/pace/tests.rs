use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

/// A line that carries bytes at a rate, of which the first were there before: what is written waits its turn.
struct Line {
    now: Instant,
    /// Bytes a millisecond.
    rate: u64,
    trip: Duration,
    /// Until when the rate is used up.
    busy: Instant,
    /// What was written: how far, and when the writer hears that it was read.
    under_way: VecDeque<(u64, Instant)>,
    written: u64,
}

impl Line {
    fn new(rate: u64, trip: Duration) -> Line {
        let now = Instant::now();
        Line {
            now,
            rate,
            trip,
            busy: now,
            under_way: VecDeque::new(),
            written: 0,
        }
    }

    /// Writes all there is room for, for so many milliseconds, in pieces of a packet; the bytes read meanwhile, and the longest time
    /// from a write until it was heard of.
    fn fill(&mut self, pace: &mut Pace, millis: u32) -> (u64, Duration) {
        let (from, mut longest) = (pace.seen, Duration::ZERO);
        for _ in 0..millis {
            self.now += MS;
            while let Some((bytes, at)) = self.under_way.front().copied()
                && at <= self.now
            {
                pace.receipt(self.now, bytes);
                self.under_way.pop_front();
            }
            while pace.room(self.now) > 0 {
                let bytes = 1500;
                pace.write(self.now, bytes);
                self.written += bytes as u64;
                let took = Duration::from_micros(bytes as u64 * 1000 / self.rate);
                self.busy = self.busy.max(self.now) + took;
                longest = longest.max(self.busy + self.trip - self.now);
                self.under_way
                    .push_back((self.written, self.busy + self.trip));
            }
        }
        (pace.seen - from, longest)
    }
}

#[test]
fn a_slow_line_holds_its_round_trip_and_a_little_more() {
    // 8 Mbit/s, 50 ms.
    let mut line = Line::new(1000, MS * 50);
    let mut pace = Pace::new(line.now);
    line.fill(&mut pace, 2000);
    let (read, longest) = line.fill(&mut pace, 5000);
    assert!(read >= 4_900_000, "it is used whole: {read}");
    assert!(longest <= MS * 130, "{longest:?}");
}

#[test]
fn a_fast_line_is_filled_within_a_second() {
    // 800 Mbit/s, 50 ms.
    let mut line = Line::new(100_000, MS * 50);
    let mut pace = Pace::new(line.now);
    line.fill(&mut pace, 1000);
    let (read, _) = line.fill(&mut pace, 1000);
    assert!(read >= 95_000_000, "{read}");
    assert!(pace.allowed <= MOST);
}

#[test]
fn a_line_that_grows_slow_holds_seconds_for_no_more_than_two() {
    let mut line = Line::new(10_000, MS * 20);
    let mut pace = Pace::new(line.now);
    line.fill(&mut pace, 3000);
    line.rate = 400;
    line.fill(&mut pace, 3000);
    let (read, longest) = line.fill(&mut pace, 3000);
    assert!(read >= 1_150_000, "{read}");
    assert!(longest <= MS * 250, "{longest:?}");
}

#[test]
fn a_longer_way_is_noticed_although_it_is_never_idle() {
    let mut line = Line::new(2000, MS * 20);
    let mut pace = Pace::new(line.now);
    line.fill(&mut pace, 3000);
    line.trip = MS * 200;
    // The shortest round trip is measured anew every ten seconds.
    line.fill(&mut pace, 15_000);
    let (read, longest) = line.fill(&mut pace, 20_000);
    assert!(read >= 36_000_000, "{read}");
    assert!(longest <= MS * 450, "{longest:?}");
}

#[test]
fn a_full_line_never_looks_longer_and_longer() {
    let mut line = Line::new(1000, MS * 50);
    let mut pace = Pace::new(line.now);
    let (read, _) = line.fill(&mut pace, 60_000);
    assert!(read >= 58_500_000, "{read}");
    let (_, longest) = line.fill(&mut pace, 5000);
    assert!(longest <= MS * 150, "{longest:?}");
}

#[test]
fn who_never_told_anything_is_waited_for_once() {
    let mut now = Instant::now();
    let mut pace = Pace::new(now);
    let room = pace.room(now);
    pace.write(now, usize::try_from(room).unwrap());
    assert_eq!((room, pace.room(now)), (FIRST, 0));
    assert_eq!(pace.room(now + DEAF - MS), 0);
    now += DEAF;
    for _ in 0..100 {
        assert_eq!(pace.room(now), MOST);
        pace.write(now, 1 << 20);
        assert_eq!(pace.due(), None);
    }
    // One that tells after all is believed: what it has not read is under way.
    pace.receipt(now, FIRST + (1 << 20));
    assert_eq!(pace.room(now), 0);
    pace.receipt(now + MS, pace.sent);
    assert!((LEAST..=MOST).contains(&pace.room(now + MS)));
}

#[test]
fn who_tells_nothing_any_more_holds_nobody_up_for_long() {
    let now = Instant::now();
    let mut pace = Pace::new(now);
    pace.write(now, 1000);
    pace.receipt(now, 1000);
    let room = pace.room(now);
    pace.write(now, usize::try_from(room).unwrap());
    assert_eq!((room, pace.room(now)), (FIRST, 0));
    assert_eq!(pace.due(), Some(now + DEAF));
    assert_eq!(pace.room(now + DEAF - MS), 0);
    assert_eq!(pace.room(now + DEAF), FIRST);
}

#[test]
fn what_cannot_have_been_read_is_ignored() {
    let now = Instant::now();
    let mut pace = Pace::new(now);
    pace.write(now, 1000);
    for seen in [0, 1001, u64::MAX] {
        pace.receipt(now + MS, seen);
        assert_eq!((pace.seen, pace.shortest), (0, None));
    }
    pace.receipt(now + MS, 1000);
    pace.receipt(now + MS, 500);
    assert_eq!((pace.seen, pace.room(now + MS)), (1000, FIRST));
}

#[test]
fn the_slowest_and_the_fastest_lines_are_used_whole() {
    // 64 kbit/s at 600 ms, and 10 Gbit/s at 200 us and at 8 ms.
    let lines = [
        (8, MS * 600, 10_000),
        (1_250_000, MS / 5, 200),
        (1_250_000, MS * 8, 200),
    ];
    for (rate, trip, millis) in lines {
        let mut line = Line::new(rate, trip);
        let mut pace = Pace::new(line.now);
        line.fill(
            &mut pace,
            20_000 / u32::try_from(rate.min(1000)).unwrap() + 300,
        );
        let (read, _) = line.fill(&mut pace, millis);
        let whole = rate * u64::from(millis);
        assert!(read >= whole / 20 * 19, "{rate}: {read} of {whole}");
    }
}

#[test]
fn a_burst_after_a_silence_fills_the_line_again() {
    let mut line = Line::new(10_000, MS * 40);
    let mut pace = Pace::new(line.now);
    line.fill(&mut pace, 3000);
    for silence in [900, 1100, 60_000] {
        // What is under way arrives, and is told of.
        for (bytes, at) in std::mem::take(&mut line.under_way) {
            pace.receipt(at, bytes);
        }
        line.now += MS * silence;
        assert!(pace.room(line.now) >= LEAST);
        line.fill(&mut pace, 500);
        let (read, longest) = line.fill(&mut pace, 1000);
        assert!(read >= 9_500_000, "after {silence} ms: {read}");
        assert!(longest <= MS * 150, "after {silence} ms: {longest:?}");
    }
}

proptest! {
    /// Whatever a reader claims, nothing is believed that was not written, the bound holds, and a writer is never held up for
    /// longer than a full line waits.
    #[test]
    fn a_hostile_reader_gains_nothing(steps in proptest::collection::vec((any::<u8>(), any::<u64>(), 0u64..5000), 1..200)) {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        for (what, claim, millis) in steps {
            match what % 4 {
                0 => pace.receipt(now, claim),
                1 => pace.receipt(now, pace.seen + claim % (pace.sent - pace.seen + 2)),
                2 => now += Duration::from_millis(millis),
                _ => {
                    let room = pace.room(now);
                    prop_assert!(room <= MOST);
                    match pace.due() {
                        Some(due) if room == 0 => {
                            prop_assert!(due <= now + DEAF);
                            prop_assert!(pace.room(due.max(now)) > 0);
                        }
                        _ => pace.write(now, usize::try_from(claim % (room + 1)).unwrap()),
                    }
                }
            }
            prop_assert!(pace.seen <= pace.sent);
            prop_assert!(pace.allowed <= MOST && pace.marks.len() <= MARKS.0);
            prop_assert!(pace.room(now) > 0 || pace.due().is_some());
        }
    }
}

#[test]
fn receipts_are_few() {
    let now = Instant::now();
    let mut receipts = Receipts::default();
    receipts.read(1 << 20);
    assert_eq!(receipts.take(now), None, "the stream has no number");
    receipts.named(7);
    assert_eq!(receipts.take(now), Some((7, 1 << 20)));
    receipts.read(8191);
    assert_eq!(receipts.due(now + APART), None, "a little is not told of");
    receipts.read(1);
    assert_eq!(receipts.due(now), Some(now + APART));
    assert_eq!(receipts.take(now + APART - MS), None);
    assert_eq!(receipts.take(now + APART), Some((7, (1 << 20) + 8192)));
    assert_eq!(receipts.due(now + APART), None);
}
