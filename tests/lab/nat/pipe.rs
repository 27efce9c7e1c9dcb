//! The thread that carries packets through a site: from one TUN device to the other, each way over a line of its own.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};

use super::tun::Tun;
use super::{Side, Site, Weather, Wire};

/// Where one of the two devices is made.
#[derive(Debug, Clone)]
pub struct End {
    /// A namespace, by the path of its file.
    pub space: PathBuf,
    /// Name of the device.
    pub device: String,
}

/// What passes between the devices, and how.
pub struct Inner {
    pub site: Site,
    /// The line to the outside.
    pub up: Wire,
    /// The line to the inside.
    pub down: Wire,
    /// Packets that the machine turned round to the inside.
    turned: Vec<Vec<u8>>,
    start: Instant,
}

impl Inner {
    /// The time of the machine.
    pub fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Mappings of all NATs of the site that live now.
    pub fn mappings(&mut self) -> usize {
        let now = self.now();
        self.site.nats.iter_mut().map(|nat| nat.mappings(now)).sum()
    }
}

/// A site at work. It ends, and its devices go, when this is dropped.
pub struct Pipe {
    inner: Arc<Mutex<Inner>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Packets taken from a device before the other has its turn.
const TURN: usize = 64;
/// How late a stop is seen.
const TICK: Duration = Duration::from_millis(50);

impl Pipe {
    /// Makes the two devices, down and without addresses, and begins to carry. Its time begins at 0 now.
    ///
    /// # Errors
    /// A device cannot be made.
    pub fn start(site: Site, inside: End, outside: End, seed: u64) -> Result<Pipe> {
        let inner = Arc::new(Mutex::new(Inner {
            site,
            up: Wire::new(Weather::default(), seed),
            down: Wire::new(Weather::default(), !seed),
            turned: Vec::new(),
            start: Instant::now(),
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (said, hears) = mpsc::channel();
        let (shared, ends) = (Arc::clone(&inner), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("nat".to_owned())
            .spawn(move || {
                let opened = Tun::open(&inside.space, &inside.device)
                    .and_then(|inside| Ok((inside, Tun::open(&outside.space, &outside.device)?)));
                match opened {
                    Ok((inside, outside)) => {
                        let _ = said.send(Ok(()));
                        run(&shared, &ends, &inside, &outside);
                    }
                    Err(error) => drop(said.send(Err(error))),
                }
            })
            .context("start a thread")?;
        hears.recv().context("the thread of a NAT ended")??;
        Ok(Pipe {
            inner,
            stop,
            thread: Some(thread),
        })
    }

    /// What passes, to be looked at or changed; nothing is carried while this is held.
    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another weather, both ways.
    pub fn weather(&self, weather: &Weather) {
        let mut inner = self.inner();
        inner.up.set(weather.clone());
        inner.down.set(weather.clone());
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Mutex<Inner>, stop: &AtomicBool, inside: &Tun, outside: &Tun) {
    let mut buffer = vec![0; 65536];
    let mut wait = Duration::ZERO;
    while !stop.load(Relaxed) {
        let mut ready = [
            PollFd::new(inside.as_fd(), PollFlags::POLLIN),
            PollFd::new(outside.as_fd(), PollFlags::POLLIN),
        ];
        let _ = ppoll(&mut ready, Some(wait.into()), None);
        let mut inner = shared.lock().unwrap_or_else(PoisonError::into_inner);
        for (from, device) in [(Side::Inside, inside), (Side::Outside, outside)] {
            for _ in 0..TURN {
                let Some(length) = device.read(&mut buffer) else {
                    break;
                };
                inner.take(from, buffer[..length].to_vec());
            }
        }
        wait = inner.give(inside, outside);
    }
}

impl Inner {
    /// Both lines stand outside: a packet meets the machine before the line on its way out, after it on its way in.
    fn take(&mut self, from: Side, packet: Vec<u8>) {
        let now = self.now();
        if from == Side::Outside {
            self.down.push(now, packet);
        } else if let Some((to, packet)) = self.site.carry(now, from, packet) {
            match to {
                Side::Outside => self.up.push(now, packet),
                Side::Inside => self.turned.push(packet),
            }
        }
    }

    /// Gives out what is due; how long until the next is.
    fn give(&mut self, inside: &Tun, outside: &Tun) -> Duration {
        let now = self.now();
        for packet in self.turned.drain(..) {
            inside.write(&packet);
        }
        while let Some(packet) = self.down.pop(now) {
            match self.site.carry(now, Side::Outside, packet) {
                Some((Side::Inside, packet)) => inside.write(&packet),
                Some((Side::Outside, packet)) => self.up.push(now, packet),
                None => {}
            }
        }
        while let Some(packet) = self.up.pop(now) {
            outside.write(&packet);
        }
        let due = [self.up.next(), self.down.next()];
        let next = due.into_iter().flatten().min();
        next.map_or(TICK, |at| at.saturating_sub(now).min(TICK))
    }
}
