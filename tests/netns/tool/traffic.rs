//! Captures, replays, floods and counters. All bounded: by a count, a rate, a time or a size.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{SigSet, Signal};

use byway::testing::Dice;

use super::Words;
use super::frame::{self, HEADERS, Mac};
use super::pcap::{LONGEST, Writer, read};
use super::socket::{BATCH, Batch, Packets, receive, send, wait};

/// Becomes true at SIGTERM or SIGINT, so that what was counted is still told.
fn stopped() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block signals")?;
    let set = Arc::clone(&flag);
    std::thread::spawn(move || {
        let _ = signals.wait();
        set.store(true, Ordering::Relaxed);
    });
    Ok(flag)
}

/// A steady rate: sleeps until the `sent`-th message is due.
struct Pace {
    start: Instant,
    rate: u64,
}

impl Pace {
    fn new(rate: u64) -> Pace {
        Pace {
            start: Instant::now(),
            rate: rate.max(1),
        }
    }

    fn wait(&self, sent: u64) {
        let due = Duration::from_nanos(sent.saturating_mul(1_000_000_000) / self.rate);
        std::thread::sleep(due.saturating_sub(self.start.elapsed()));
    }
}

/// `capture INTERFACE FILE`.
///
/// # Errors
/// The interface or the file fails.
pub fn capture(words: &Words) -> Result<()> {
    let (interface, file) = (words.at(0)?, words.at(1)?);
    let stop = stopped()?;
    let socket = Packets::open(interface)?;
    let kind =
        std::fs::read_to_string(format!("/sys/class/net/{interface}/type")).unwrap_or_default();
    let mut writer = Writer::create(Path::new(file), if kind.trim() == "1" { 1 } else { 101 })?;
    let end = Instant::now() + Duration::from_secs(words.or("for", 3600)?);
    let (mut room, mut batch) = (words.or("max", 1_usize << 30)?, Batch::new(LONGEST));
    println!("ready");
    loop {
        let more = wait(&socket, Duration::from_millis(100))? && receive(&socket, &mut batch)? > 0;
        if !more && (stop.load(Ordering::Relaxed) || Instant::now() > end) {
            return writer.flush();
        }
        for frame in batch.iter().take(if more { BATCH } else { 0 }) {
            ensure!(room >= frame.len(), "the capture is larger than it may be");
            room -= frame.len();
            writer.write(frame)?;
        }
        writer.flush()?;
    }
}

/// `replay INTERFACE FILE to=`.
///
/// # Errors
/// The interface or the file fails.
pub fn replay(words: &Words) -> Result<()> {
    let socket = Packets::open(words.at(0)?)?;
    let (to, from) = (
        words.need::<SocketAddrV4>("to")?,
        words.find::<SocketAddrV4>("from")?,
    );
    let (alias, target) = (
        words.find::<SocketAddrV4>("as")?,
        words.find::<String>("mac")?,
    );
    let mut again = Vec::new();
    for old in read(Path::new(words.at(1)?))? {
        let Some(udp) = frame::udp(&old) else {
            continue;
        };
        if udp.to != to
            || from.is_some_and(|f| f != udp.from)
            || frame::sealed(udp.payload).is_none()
        {
            continue;
        }
        let target: Mac = match &target {
            Some(text) => super::mac(text)?,
            None => old[..6].try_into()?,
        };
        again.push(frame::make(
            old[6..12].try_into()?,
            target,
            alias.unwrap_or(udp.from),
            to,
            udp.payload,
        ));
    }
    let last = words.or("last", usize::MAX)?;
    let again = again.split_off(again.len().saturating_sub(last));
    let pace = Pace::new(words.or("pps", 20_000)?);
    let mut sent = 0;
    while sent < again.len() {
        let part = again
            .iter()
            .skip(sent)
            .take(BATCH.min(32))
            .map(Vec::as_slice);
        let taken = send(&socket, part)?;
        sent += taken;
        pace.wait(sent as u64);
        if taken == 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    println!("{sent}");
    Ok(())
}

/// `thief IN OUT from= to= as=`.
///
/// # Errors
/// An interface fails.
pub fn thief(words: &Words) -> Result<()> {
    let stop = stopped()?;
    let (input, output) = (Packets::open(words.at(0)?)?, Packets::open(words.at(1)?)?);
    let (from, to): (SocketAddrV4, SocketAddrV4) = (words.need("from")?, words.need("to")?);
    let alias: SocketAddrV4 = words.need("as")?;
    let end = Instant::now() + Duration::from_secs(words.or("for", 10)?);
    let (mut batch, mut copied) = (Batch::new(2048), 0_u64);
    println!("ready");
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        if !wait(&input, Duration::from_millis(100))? {
            continue;
        }
        receive(&input, &mut batch)?;
        for old in batch.iter() {
            let Some(udp) = frame::udp(old).filter(|u| u.from == from && u.to == to) else {
                continue;
            };
            if frame::sealed(udp.payload).is_none() {
                continue;
            }
            let copy = frame::make(
                old[6..12].try_into()?,
                old[..6].try_into()?,
                alias,
                to,
                udp.payload,
            );
            copied += send(&output, std::iter::once(copy.as_slice()))? as u64;
        }
    }
    println!("{copied}");
    Ok(())
}

/// Different datagrams of a flood.
const STOCK: u64 = 8192;

/// One datagram of a flood: random, or a frame as if of ours under a receiver index.
fn junk(
    n: u64,
    target: Mac,
    from: Option<SocketAddrV4>,
    to: SocketAddrV4,
    index: Option<u32>,
    size: usize,
) -> Vec<u8> {
    let mut dice = Dice::new(n);
    let mut payload = vec![0; size];
    dice.fill(&mut payload);
    if let Some(index) = index {
        payload[..4].copy_from_slice(&[4, 0, 0, 0]);
        payload[4..8].copy_from_slice(&index.to_be_bytes());
        // Counters as of a live session: some behind, some far ahead.
        payload[8..16].copy_from_slice(&(dice.roll() % 2_000_000).to_be_bytes());
    }
    // A range for benchmarks (RFC 2544): if there were an answer, it would go nowhere.
    let random = dice.roll();
    let host = Ipv4Addr::new(198, 18, (random >> 8) as u8, random as u8);
    let from = from.unwrap_or(SocketAddrV4::new(host, (random >> 16) as u16 | 1024));
    let frame = frame::make([2, 0, 0, 0, 0, 9], target, from, to, &payload);
    debug_assert!(frame.len() == HEADERS + size);
    frame
}

/// `flood INTERFACE mac= to=`.
///
/// # Errors
/// The interface fails.
pub fn flood(words: &Words) -> Result<()> {
    let stop = stopped()?;
    let socket = Packets::open(words.at(0)?)?;
    socket.bypass()?;
    let (target, to) = (
        super::mac(&words.need::<String>("mac")?)?,
        words.need::<SocketAddrV4>("to")?,
    );
    let (from, index) = (
        words.find::<SocketAddrV4>("from")?,
        words.find::<u32>("index")?,
    );
    let (size, count) = (words.or("size", 148_usize)?, words.or("count", u64::MAX)?);
    let pace = Pace::new(words.or("pps", 100_000)?);
    ensure!((16..=1472).contains(&size), "size is 16 to 1472");
    // Made before, so that the flood costs the machine little beside the sending.
    let frames: Vec<Vec<u8>> = (0..STOCK)
        .map(|n| junk(n, target, from, to, index, size))
        .collect();
    let mut sent = 0;
    while sent < count && !stop.load(Ordering::Relaxed) {
        let left = usize::try_from(count - sent).unwrap_or(usize::MAX);
        let next = frames
            .iter()
            .cycle()
            .skip(sent as usize % frames.len())
            .take(BATCH.min(left));
        let taken = send(&socket, next.map(Vec::as_slice))?;
        sent += taken as u64;
        if taken == 0 {
            std::thread::sleep(Duration::from_micros(200));
        }
        pace.wait(sent);
    }
    println!("{sent} in {:.3} s", pace.start.elapsed().as_secs_f64());
    Ok(())
}

/// `blast A:P`.
///
/// # Errors
/// The socket fails.
pub fn blast(words: &Words) -> Result<()> {
    let stop = stopped()?;
    let to: SocketAddrV4 = words.at(0)?.parse().context("blast ADDRESS:PORT")?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("open a socket")?;
    socket.connect(to).context("connect")?;
    let payload = vec![b'.'; words.or("size", 64)?];
    let end = Instant::now() + Duration::from_secs_f64(words.or("for", 5.0)?);
    let pace = Pace::new(words.or("pps", 250_000)?);
    let (mut sent, mut refused) = (0_u64, 0_u64);
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let taken = send(&socket, std::iter::repeat_n(payload.as_slice(), 32))? as u64;
        sent += taken;
        // What the interface's queue did not take was offered all the same.
        refused += 32 - taken;
        pace.wait(sent + refused);
    }
    println!(
        "{{\"sent\":{sent},\"refused\":{refused},\"seconds\":{:.3}}}",
        pace.start.elapsed().as_secs_f64()
    );
    Ok(())
}

/// `sink A:P`.
///
/// # Errors
/// The socket fails.
pub fn sink(words: &Words) -> Result<()> {
    let stop = stopped()?;
    let at: SocketAddrV4 = words.at(0)?.parse().context("sink ADDRESS:PORT")?;
    let socket = UdpSocket::bind(at).context("open a socket")?;
    nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::RcvBufForce, &(8 << 20))
        .context("a large buffer")?;
    let end = Instant::now() + Duration::from_secs(words.or("for", 60)?);
    let (mut batch, mut count, mut first, mut last) =
        (Batch::new(2048), 0_u64, None, Instant::now());
    println!("ready");
    while Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let more = wait(&socket, Duration::from_millis(100))?;
        if more {
            count += receive(&socket, &mut batch)? as u64;
            last = Instant::now();
            first.get_or_insert(last);
        } else if count > 0 && last.elapsed() > Duration::from_secs(1) {
            break;
        }
    }
    let seconds = first.map_or(0.0, |f| (last - f).as_secs_f64());
    println!("{{\"received\":{count},\"seconds\":{seconds:.3}}}");
    Ok(())
}
