//! A member's datagrams: the session is made as every node makes one, and what is said under its keys is ours.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use byway::crypto::frame::{HEADER, Header, Opener};
use byway::model::id::PeerId;
use byway::peer::path::Origin;
use byway::peer::session::{Indices, PostQuantum};
use byway::peer::{Buffers, Config, Event, Pair, Peer as Core};
use byway::wire::control::{ControlAnswer, ControlRequest};
use byway::wire::datagram::{Knock, Trailer, split, token_of};
use tokio::net::UdpSocket;

use super::forge;
use super::hand::Hand;
use super::peer::{Peer, peer_of};

/// How long a datagram path may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for a datagram before the timers are looked at.
const TURN: Duration = Duration::from_millis(20);

/// A datagram path to one victim.
pub struct Line {
    hand: Hand,
    control: Peer,
    core: Core,
    socket: UdpSocket,
    victim: SocketAddr,
    openers: HashMap<u32, Opener>,
    buffers: Buffers,
    is_up: bool,
    /// What the victim says of knocks, and was not yet looked at.
    pub words: VecDeque<Knock>,
    /// Unsealed knocks that came.
    pub knocks: u64,
}

fn entropy(bytes: &mut [u8]) {
    if getrandom::fill(bytes).is_err() {
        bytes.fill(1);
    }
}

impl Line {
    /// Makes a session with the victim and waits for a path; datagrams leave from `listen`.
    ///
    /// # Errors
    /// We are no member there, our ID is greater than the victim's (then it would have to begin), or nothing is answered.
    pub async fn open(hand: &Hand, id: PeerId, listen: SocketAddr) -> Result<Line> {
        let me = peer_of(&hand.key);
        ensure!(me < id, "the victim begins: its ID is the smaller one");
        let place = hand.first()?;
        let super::peer::Place::Tcp(victim) = place else {
            anyhow::bail!("a victim that has datagrams listens on TCP as well");
        };
        let seen = hand.pull().await?;
        let grant = seen.grant(id).context("no member of that ID")?;
        let config = Config {
            me,
            secret: forge::data_secret(&hand.key).into(),
            aes: None,
            post_quantum: PostQuantum::Off,
        };
        let indices = Indices::new(&mut entropy);
        let mut core = Core::new(id, config, indices, [].into(), &mut entropy);
        let now = Instant::now();
        core.join(now, hand.subnet, grant.data_key);
        core.offer(now, &[victim], Origin::Told);
        core.connected(now, &mut entropy);
        let mut line = Line {
            hand: hand.clone(),
            control: hand.dial(place).await?,
            core,
            socket: UdpSocket::bind(listen).await.context("bind")?,
            victim,
            openers: HashMap::new(),
            buffers: Buffers::default(),
            is_up: false,
            words: VecDeque::new(),
            knocks: 0,
        };
        let end = now + PATIENCE;
        while !line.is_up {
            ensure!(Instant::now() < end, "no datagram path in time");
            line.turn().await?;
        }
        Ok(line)
    }

    /// Says something of knocks on the path.
    ///
    /// # Errors
    /// The socket refuses.
    pub async fn say(&mut self, word: Knock) -> Result<()> {
        self.core.say_of_knock(word);
        self.carry_out().await
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// The socket refuses.
    pub async fn send(&self, bytes: &[u8]) -> Result<()> {
        self.socket.send_to(bytes, self.victim).await?;
        Ok(())
    }

    /// Takes what came, for a moment at most, and keeps the session alive.
    ///
    /// # Errors
    /// The socket or the connection fails.
    pub async fn turn(&mut self) -> Result<()> {
        self.carry_out().await?;
        let mut bytes = [0; 2048];
        let came = tokio::time::timeout(TURN, self.socket.recv_from(&mut bytes)).await;
        if let Ok(Ok((length, from))) = came {
            self.datagram(from, bytes.get(..length).unwrap_or_default());
        }
        let now = Instant::now();
        if self.core.poll_timeout().is_some_and(|due| due <= now) {
            self.core.handle_timeout(now, &mut entropy);
        }
        self.carry_out().await
    }

    fn datagram(&mut self, from: SocketAddr, bytes: &[u8]) -> Option<()> {
        if token_of(bytes).is_some() {
            self.knocks += 1;
            return None;
        }
        let receiver = Header::decode(bytes)?.receiver;
        let (clear, sealed) = bytes.split_first_chunk::<HEADER>()?;
        let mut opened = vec![0; bytes.len()];
        let opener = self.openers.get(&receiver)?;
        let length = opener.open(clear, sealed, &mut opened)?;
        let (body, trailer) = split(opened.get(..length)?)?;
        if trailer == Trailer::Control {
            let of = (self.hand.subnet, receiver, 0);
            let body = opened.get(..body)?;
            let (now, pair) = (Instant::now(), Pair::from(from));
            self.core.handle_control(now, of, pair, body, &mut entropy);
        }
        None
    }

    /// Does what the session wants.
    async fn carry_out(&mut self) -> Result<()> {
        while let Some(event) = self.core.poll_event() {
            match event {
                Event::Install { index, opener, .. } => {
                    self.openers.insert(index, opener);
                }
                Event::Remove { index } => drop(self.openers.remove(&index)),
                Event::Route { route, .. } => self.is_up = route.is_some(),
                Event::Knock { word } => self.words.push_back(word),
                Event::Ask {
                    subnet,
                    number,
                    message,
                } => {
                    let endpoints = vec![self.socket.local_addr()?];
                    let request = ControlRequest::Session {
                        subnet,
                        message,
                        endpoints,
                    };
                    let answer = match self.control.control(&request).await? {
                        ControlAnswer::Session { message, .. } => Some(message),
                        _ => None,
                    };
                    let answer = answer.as_deref();
                    self.core
                        .handle_answer(Instant::now(), subnet, number, answer, &mut entropy);
                }
                _ => {}
            }
        }
        while let Some(transmit) = self.core.poll_transmit(&mut self.buffers) {
            let to = transmit.pair.remote.address;
            // What does not leave is lost, as on any line.
            let _ = self.socket.send_to(self.buffers.frame(), to).await;
        }
        Ok(())
    }
}
