//! A network that loses, doubles, delays and reorders, on a clock that only tests move.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Dice;

/// Where a virtual clock begins.
pub(crate) fn some_moment() -> Instant {
    Instant::now()
}

/// What is under way and what is to happen, by the moment at which it does; two of one moment keep their order.
pub(crate) struct Network<T> {
    /// The time, as everybody in this world knows it.
    pub now: Instant,
    pub dice: Dice,
    /// Per cent of what is sent that never arrives.
    pub loss: u64,
    /// Per cent of what arrives that arrives twice.
    pub double: u64,
    /// Milliseconds: what is sent takes one to so many.
    pub delay: u64,
    /// What happens, by moment and number.
    pub events: BTreeMap<(Instant, u64), T>,
    number: u64,
}

impl<T> Network<T> {
    /// A good one: nothing is lost or doubled, everything takes up to 20 ms.
    pub fn new(seed: u64, now: Instant) -> Network<T> {
        Network {
            now,
            dice: Dice::new(seed),
            loss: 0,
            double: 0,
            delay: 20,
            events: BTreeMap::new(),
            number: 0,
        }
    }

    /// Has something happen in that time.
    pub fn after(&mut self, wait: Duration, what: T) {
        self.number += 1;
        self.events.insert((self.now + wait, self.number), what);
    }

    /// Has something arrive, without fail.
    pub fn later(&mut self, what: T) {
        let wait = 1 + self.dice.below(self.delay);
        self.after(Duration::from_millis(wait), what);
    }

    /// Whether the network loses what is sent now.
    pub fn loses(&mut self) -> bool {
        self.dice.percent(self.loss)
    }

    /// Sends what is not lost; it arrives once or twice.
    pub fn send(&mut self, what: T)
    where
        T: Clone,
    {
        if self.dice.percent(self.double) {
            self.later(what.clone());
        }
        self.later(what);
    }

    /// When the next thing happens.
    pub fn next(&self) -> Option<Instant> {
        self.events.first_key_value().map(|((at, _), _)| *at)
    }

    /// What happens now.
    pub fn due(&mut self) -> Option<T> {
        self.next().filter(|at| *at <= self.now)?;
        self.events.pop_first().map(|(_, what)| what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_arrives_in_time_and_in_the_order_of_its_moments() {
        let start = some_moment();
        let mut network = Network::new(1, start);
        network.after(Duration::from_millis(2), "third");
        network.after(Duration::from_millis(1), "first");
        network.after(Duration::from_millis(1), "second");
        assert_eq!(
            (network.due(), network.next()),
            (None, Some(start + Duration::from_millis(1)))
        );
        network.now += Duration::from_secs(1);
        assert_eq!(
            [network.due(), network.due(), network.due(), network.due()],
            [Some("first"), Some("second"), Some("third"), None]
        );
    }

    #[test]
    fn losses_and_doubles_are_what_was_asked_for() {
        let mut network = Network::new(1, some_moment());
        (network.loss, network.double) = (10, 20);
        let sent = (0..10_000)
            .filter(|n| {
                !network.loses() && {
                    network.send(*n);
                    true
                }
            })
            .count();
        assert!((8_800..9_200).contains(&sent), "{sent}");
        assert!(
            (1_600..2_000).contains(&(network.events.len() - sent)),
            "{}",
            network.events.len() - sent
        );
    }
}
