//! A wire with delay and loss between two interfaces: the kernel here may have no netem.
//!
//! One thread each way, a queue of bounded length, and a release time for each packet. Offloads of the hosts at both ends
//! must be off, or one decision falls on a whole super-packet, and a checksum left to the hardware is never made.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use byway::testing::Dice;

use super::Words;
use super::socket::{BATCH, Batch, Packets, receive, send, wait};

/// Shorter packets (ARP, acknowledgements without data) are never lost by intent.
const SMALL: usize = 200;

/// `relay INTERFACE INTERFACE [delay=] [loss=] [queue=]`.
///
/// # Errors
/// An interface is missing, or fails.
pub fn run(words: &Words) -> Result<()> {
    let (left, right) = (
        Arc::new(Packets::open(words.at(0)?)?),
        Arc::new(Packets::open(words.at(1)?)?),
    );
    let delay = Duration::from_micros(words.or("delay", 0)?);
    let (loss, queue) = (words.or("loss", 0_u64)?, words.or("queue", 4000_usize)?);
    println!("ready");
    let (a, b) = (Arc::clone(&left), Arc::clone(&right));
    let back = thread::spawn(move || carry(&b, &a, delay, loss, queue, 2));
    carry(&left, &right, delay, loss, queue, 1)?;
    back.join()
        .map_err(|_| anyhow::anyhow!("the way back panicked"))?
}

/// Takes packets in and gives them out `delay` later; without end.
fn carry(
    from: &Packets,
    to: &Packets,
    delay: Duration,
    loss: u64,
    limit: usize,
    seed: u64,
) -> Result<()> {
    let mut dice = Dice::new(seed);
    let mut queue: VecDeque<(Instant, Vec<u8>)> = VecDeque::with_capacity(limit);
    let mut spare: Vec<Vec<u8>> = Vec::new();
    let mut batch = Batch::new(2048);
    loop {
        let idle = Duration::from_secs(1);
        let due = queue
            .front()
            .map_or(idle, |(at, _)| at.saturating_duration_since(Instant::now()));
        if wait(from, due)? {
            receive(from, &mut batch)?;
            let at = Instant::now() + delay;
            for packet in batch.iter() {
                let lost = packet.len() > SMALL && dice.roll() % 100_000 < loss;
                if lost || queue.len() >= limit {
                    continue;
                }
                let mut copy = spare.pop().unwrap_or_default();
                copy.clear();
                copy.extend_from_slice(packet);
                queue.push_back((at, copy));
            }
        }
        let now = Instant::now();
        loop {
            let due = queue
                .iter()
                .take(BATCH)
                .take_while(|(at, _)| *at <= now)
                .count();
            if due == 0 {
                break;
            }
            let sent = send(
                to,
                queue.iter().take(due).map(|(_, packet)| packet.as_slice()),
            )?;
            // A full queue of the interface loses what it does not take, as a wire does.
            let gone = if sent == 0 { due } else { sent };
            spare.extend(queue.drain(..gone).map(|(_, packet)| packet));
        }
    }
}
