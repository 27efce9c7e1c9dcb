//! The packets of a search, a handful at a time: from each socket of the opener, or to each port of a guesser.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::{GUESSES, LASTS, Output, Sprays, Stage};
use crate::peer::Remote;

/// The time between two handfuls.
const TICK: Duration = Duration::from_millis(20);
/// The most packets in one of these.
const HANDFUL: u64 = 25;
/// Each socket of the opener sends again after so long: the first packet may have been lost.
const SECOND_ROUND: Duration = Duration::from_secs(5);
/// Ports in a row that are tried first where the opener's NAT counts them, from a few before the one it is expected at.
const IN_A_ROW: u32 = 41;
const BEFORE: i32 = 4;
/// The lowest port that a NAT gives out, and how many there are.
const FIRST: u32 = 1024;
pub(super) const PORTS: u32 = 64_512;
/// From one guess to the next: it has no divisor in common with the number of ports, so that none is tried twice, and spreads
/// any number of guesses evenly.
const STRIDE: u32 = 39_869;

impl Sprays {
    /// Sends the next handful from the sockets that are open.
    pub(super) fn open(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        let Stage::Opening {
            aim,
            began,
            sockets,
            sent,
        } = &mut run.stage
        else {
            return;
        };
        let is_second = now >= *began + SECOND_ROUND;
        let rounds = if is_second { 2 } else { 1 };
        let left = sockets.len().saturating_mul(rounds).saturating_sub(*sent);
        let left = u64::try_from(left).unwrap_or(0);
        let taken = self.bucket.take_most(now, 1, left.min(HANDFUL));
        for _ in 0..taken {
            let socket = sent
                .checked_rem(sockets.len())
                .and_then(|at| sockets.get(at));
            *sent = sent.saturating_add(1);
            let address = SocketAddr::V4(*aim);
            let Some(helper) = socket.copied() else { break };
            self.outputs.push_back(Output::Probe {
                peer: run.peer,
                to: Remote {
                    helper: Some(helper),
                    ..Remote::from(address)
                },
            });
        }
        self.stats.probes = self.stats.probes.saturating_add(taken);
        run.due = match left > taken {
            true => now + TICK,
            false if is_second => *began + LASTS,
            false => *began + SECOND_ROUND,
        };
        if now >= *began + LASTS {
            self.finish(now, false);
        }
    }

    /// Sends the next handful of guesses.
    pub(super) fn guess(&mut self, now: Instant) {
        let Some(run) = &mut self.run else { return };
        let Stage::Guessing {
            aim,
            began,
            start,
            sent,
        } = &mut run.stage
        else {
            return;
        };
        let want = self.peers.get(&run.peer).and_then(|state| state.want);
        let counted = want.and_then(|want| want.counted);
        let left = u64::from(GUESSES.saturating_sub(*sent));
        let taken = self.bucket.take_most(now, 1, left.min(HANDFUL));
        for _ in 0..taken {
            let port = guessed(*start, *sent, counted);
            *sent = sent.saturating_add(1);
            self.outputs.push_back(Output::Probe {
                peer: run.peer,
                to: SocketAddr::from((*aim, port)).into(),
            });
        }
        self.stats.probes = self.stats.probes.saturating_add(taken);
        run.due = match left > taken {
            true => now + TICK,
            false => *began + LASTS,
        };
        if now >= *began + LASTS {
            self.finish(now, false);
        }
    }
}

/// The port of a guess: first those in a row where the NAT counts, then any, none twice.
pub(super) fn guessed(start: u32, number: u32, counted: Option<(u16, i16)>) -> u16 {
    let in_a_row = counted
        .filter(|_| number < IN_A_ROW)
        .and_then(|(next, step)| {
            let ahead = i32::try_from(number).ok()?.checked_sub(BEFORE)?;
            let port = i32::from(next).checked_add(ahead.checked_mul(i32::from(step))?)?;
            u16::try_from(port)
                .ok()
                .filter(|port| u32::from(*port) >= FIRST)
        });
    let any = start.wrapping_add(number.wrapping_mul(STRIDE)) % PORTS;
    in_a_row.unwrap_or_else(|| u16::try_from(FIRST.saturating_add(any)).unwrap_or(u16::MAX))
}
