//! A bad line, one way: delay, jitter, loss, reorder, duplicates, a rate, and no large packets. No I/O; time is an argument.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use byway::testing::Dice;

/// How a line treats packets; the default carries all of them at once. Shares are per 100,000.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Weather {
    pub delay: Duration,
    /// The delay differs by up to so much, either way; packets overtake each other by it.
    pub jitter: Duration,
    pub loss: u64,
    pub duplicate: u64,
    /// These do not wait.
    pub reorder: u64,
    /// Bits a second; what waits longer than `queue` is lost.
    pub rate: Option<u64>,
    /// Longest wait for the rate; 0 is 50 ms.
    pub queue: Duration,
    /// Packets of more bytes vanish, and nobody is told.
    pub larger_than: Option<usize>,
}

/// A line with what is on its way.
#[derive(Debug)]
pub struct Wire {
    weather: Weather,
    dice: Dice,
    queue: BinaryHeap<Reverse<(Duration, u64, Vec<u8>)>>,
    count: u64,
    /// Until when the rate is used up.
    busy: Duration,
}

impl Wire {
    /// An empty line.
    pub fn new(weather: Weather, seed: u64) -> Wire {
        Wire {
            weather,
            dice: Dice::new(seed),
            queue: BinaryHeap::new(),
            count: 0,
            busy: Duration::ZERO,
        }
    }

    /// Another weather, for packets from now on.
    pub fn set(&mut self, weather: Weather) {
        self.weather = weather;
    }

    fn rolls(&mut self, share: u64) -> bool {
        share > 0 && self.dice.roll() % 100_000 < share
    }

    /// Takes a packet.
    pub fn push(&mut self, now: Duration, packet: Vec<u8>) {
        let larger = |limit| packet.len() > limit;
        if self.weather.larger_than.is_some_and(larger) || self.rolls(self.weather.loss) {
            return;
        }
        if self.rolls(self.weather.duplicate) {
            let copy = packet.clone();
            self.put(now, copy);
        }
        self.put(now, packet);
    }

    fn put(&mut self, now: Duration, packet: Vec<u8>) {
        let mut at = now;
        if let Some(rate) = self.weather.rate {
            let longest = if self.weather.queue.is_zero() {
                Duration::from_millis(50)
            } else {
                self.weather.queue
            };
            let begin = self.busy.max(now);
            if begin - now > longest {
                return;
            }
            let takes = packet.len() as u64 * 8 * 1_000_000_000 / rate.max(1);
            self.busy = begin + Duration::from_nanos(takes);
            at = self.busy;
        }
        if !self.rolls(self.weather.reorder) {
            at += self.delay();
        }
        self.count += 1;
        self.queue.push(Reverse((at, self.count, packet)));
    }

    fn delay(&mut self) -> Duration {
        let jitter = self.weather.jitter.as_micros() as u64;
        if jitter == 0 {
            return self.weather.delay;
        }
        let more = Duration::from_micros(self.dice.roll() % (2 * jitter + 1));
        (self.weather.delay + more).saturating_sub(self.weather.jitter)
    }

    /// When the next packet is due.
    pub fn next(&self) -> Option<Duration> {
        self.queue.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Gives a packet that is due.
    pub fn pop(&mut self, now: Duration) -> Option<Vec<u8>> {
        self.next().filter(|at| *at <= now)?;
        self.queue.pop().map(|Reverse((_, _, packet))| packet)
    }
}
