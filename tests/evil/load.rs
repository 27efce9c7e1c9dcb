//! Moves made of numbers: more of everything than anybody needs.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use byway::model::id::{PeerId, SubnetId};
use byway::model::record::Signed;
use byway::wire::control::{self, ControlRequest, JoinAnswer, JoinRequest};
use ed25519_dalek::SigningKey;
use futures::AsyncWriteExt;
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::dice::Dice;
use super::forge;
use super::hand::{Hand, Tally};
use super::peer::{CONTROL, JOIN, Peer, SERVICE, bare, peer_of};

/// Pause before a connection that was refused is tried again.
const AGAIN: Duration = Duration::from_millis(50);

/// How a flood of records looks.
#[derive(Debug, Clone, Copy)]
pub struct Flood {
    /// In whose name the records are; else each has an issuer that exists nowhere.
    pub issuer: Option<PeerId>,
    /// Records in a message.
    pub records: usize,
    /// Messages under way at once.
    pub inflight: usize,
    /// Pause of each sender between two messages.
    pub pause: Duration,
    /// How long.
    pub lasts: Duration,
}

fn batch(subnet: SubnetId, dice: &mut Dice, issuer: Option<PeerId>, count: usize) -> Vec<Signed> {
    let mut one = || {
        let issuer = issuer.unwrap_or_else(|| PeerId(dice.key()));
        forge::unsigned(subnet, issuer, forge::stub(dice))
    };
    (0..count).map(|_| one()).collect()
}

/// Pushes records that nobody signed, as fast as they are taken: in another's name they use up what that member may say;
/// in made-up names they use up the victim's time.
///
/// # Errors
/// No victim can be reached even once.
pub async fn flood(hand: &Hand, dice: &mut Dice, shape: Flood) -> Result<Tally> {
    let (end, tally) = (
        Instant::now() + shape.lasts,
        Arc::new(Mutex::new(Tally::default())),
    );
    let mut senders = JoinSet::new();
    for place in &hand.to {
        let first = Arc::new(hand.dial(*place).await?);
        let slot = Arc::new(Mutex::new(first));
        for _ in 0..shape.inflight {
            let (hand, place, slot, tally) =
                (hand.clone(), *place, Arc::clone(&slot), Arc::clone(&tally));
            let mut dice = Dice::new(dice.roll());
            senders.spawn(async move {
                while Instant::now() < end {
                    let peer = Arc::clone(&*slot.lock().await);
                    let records = batch(hand.subnet, &mut dice, shape.issuer, shape.records);
                    let request = ControlRequest::Push {
                        subnet: hand.subnet,
                        records,
                    };
                    let answer = tokio::time::timeout(shape.lasts, peer.control(&request)).await;
                    tally
                        .lock()
                        .await
                        .control(&answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer"))));
                    if peer.is_closed() {
                        tokio::time::sleep(AGAIN).await;
                        let mut held = slot.lock().await;
                        if held.is_closed()
                            && let Ok(fresh) = hand.dial(place).await
                        {
                            *held = Arc::new(fresh);
                        }
                    }
                    tokio::time::sleep(shape.pause).await;
                }
            });
        }
    }
    while senders.join_next().await.is_some() {}
    Ok(tally.lock().await.clone())
}

/// A key that nobody has seen before.
fn fresh(dice: &mut Dice) -> SigningKey {
    SigningKey::from_bytes(&dice.key())
}

/// Strangers that stay: each holds a connection and asks every few seconds whether the subnet is known.
///
/// # Errors
/// `hand` names no victim.
pub async fn strangers(
    hand: &Hand,
    dice: &mut Dice,
    count: usize,
    lasts: Duration,
) -> Result<Tally> {
    let (place, end) = (hand.first()?, Instant::now() + lasts);
    let mut all = JoinSet::new();
    for n in 0..count {
        let (subnet, source, mut dice) = (hand.subnet, hand.source(n), Dice::new(dice.roll()));
        all.spawn(async move {
            let mut tally = Tally::default();
            while Instant::now() < end {
                match Peer::dial(place, &fresh(&mut dice), source).await {
                    Ok(peer) => loop {
                        let answer = peer.join(&JoinRequest::Probe(subnet)).await;
                        tally.joined(&answer);
                        if answer.is_err() || Instant::now() >= end {
                            break;
                        }
                        tokio::time::sleep(
                            Duration::from_secs(4)
                                .min(end.saturating_duration_since(Instant::now())),
                        )
                        .await;
                    },
                    Err(_) => tally.add("refused"),
                }
                tokio::time::sleep(AGAIN).await;
            }
            tally
        });
    }
    let mut tally = Tally::default();
    while let Some(one) = all.join_next().await {
        tally.join(&one.unwrap_or_default());
    }
    Ok(tally)
}

/// Requests to join under made-up keys. Ends when so many were answered, or the time is over.
///
/// # Errors
/// `hand` names no victim.
pub async fn requests(
    hand: &Hand,
    dice: &mut Dice,
    count: usize,
    name: &str,
    lasts: Duration,
) -> Result<Tally> {
    let (place, end, mut tally, mut answered) =
        (hand.first()?, Instant::now() + lasts, Tally::default(), 0);
    for turn in 0.. {
        if answered >= count || Instant::now() >= end {
            break;
        }
        let key = fresh(dice);
        let Ok(peer) = Peer::dial(place, &key, hand.source(turn)).await else {
            tally.add("refused");
            tokio::time::sleep(AGAIN * 4).await;
            continue;
        };
        let ask = forge::ask(hand.subnet, &key, &format!("{name}{answered}"), None);
        let answer = peer.join(&JoinRequest::Ask(ask)).await;
        tally.joined(&answer);
        answered += usize::from(answer.is_ok());
    }
    Ok(tally)
}

/// As a member: passes on attempts with an invite by joiners that exist nowhere, so many a second.
///
/// # Errors
/// The victim cannot be reached even once.
pub async fn invites(
    hand: &Hand,
    dice: &mut Dice,
    issuer: PeerId,
    rate: u64,
    lasts: Duration,
) -> Result<Tally> {
    let (place, end, mut tally) = (hand.first()?, Instant::now() + lasts, Tally::default());
    let mut peer = hand.dial(place).await?;
    let pause = Duration::from_millis(1000_u64.checked_div(rate).unwrap_or(1000));
    while Instant::now() < end {
        let joiner = PeerId(dice.key());
        let request = ControlRequest::Forward(JoinRequest::Nonce {
            subnet: hand.subnet,
            issuer,
            joiner,
        });
        tally.control(&peer.control(&request).await);
        if peer.is_closed() {
            tokio::time::sleep(AGAIN * 4).await;
            if let Ok(fresh) = hand.dial(place).await {
                peer = fresh;
            }
        }
        tokio::time::sleep(pause).await;
    }
    Ok(tally)
}

/// Comes in by the ID of an open subnet and goes again, each time as somebody else, and leaves as much behind as an
/// announcement holds.
///
/// # Errors
/// `hand` names no victim.
pub async fn growth(
    hand: &Hand,
    dice: &mut Dice,
    count: usize,
    names: usize,
    lasts: Duration,
) -> Result<Tally> {
    let (place, end, mut tally) = (hand.first()?, Instant::now() + lasts, Tally::default());
    for turn in 0..count {
        if Instant::now() >= end {
            break;
        }
        let from = hand.source(turn).into_iter().collect();
        let guest = Hand {
            key: fresh(dice),
            from,
            ..hand.clone()
        };
        let Ok(peer) = Peer::dial(place, &guest.key, guest.source(0)).await else {
            tally.add("refused");
            tokio::time::sleep(AGAIN).await;
            continue;
        };
        let asked = peer
            .join(&JoinRequest::Ask(forge::ask(
                hand.subnet,
                &guest.key,
                "guest",
                None,
            )))
            .await;
        tally.joined(&asked);
        if matches!(asked, Ok(JoinAnswer::Admitted { .. })) {
            leave_behind(&guest, dice, names, &mut tally).await;
        }
    }
    Ok(tally)
}

/// A guest says all it can as the member it is now, then as one that leaves; what is taken of it stays.
async fn leave_behind(guest: &Hand, dice: &mut Dice, names: usize, tally: &mut Tally) {
    let forge = guest.forge();
    let said = [
        vec![forge.announcement(forge::stuffed(names))],
        vec![forge.announcement(forge::stuffed(12))],
        forge.items(dice, 128),
    ];
    for records in &said {
        match guest.push(records).await {
            Ok(answers) => tally.join(&answers),
            Err(_) => tally.add("not-a-member"),
        }
    }
    let Ok(place) = guest.first() else { return };
    for names in [names, 0] {
        let Ok(peer) = Peer::dial(place, &guest.key, guest.source(0)).await else {
            continue;
        };
        let left = peer
            .join(&JoinRequest::Decline(forge.farewell(names)))
            .await;
        tally.add(if matches!(left, Ok(JoinAnswer::Known)) {
            "left"
        } else {
            "not-left"
        });
    }
}

/// Bytes that are no message: random ones, cut ones, too long ones, promised ones, and messages with more behind them.
///
/// # Errors
/// No connection can be made at all.
pub async fn garbage(hand: &Hand, dice: &mut Dice, rounds: u64) -> Result<Tally> {
    let (place, mut tally) = (hand.first()?, Tally::default());
    let key = hand.carrier.as_ref().unwrap_or(&hand.key);
    let mut peer = Peer::dial(place, key, hand.source(0))
        .await
        .context("the first connection")?;
    for _ in 0..rounds {
        if peer.is_closed() {
            match Peer::dial(place, key, hand.source(0)).await {
                Ok(fresh) => peer = fresh,
                Err(_) => {
                    tally.add("refused");
                    tokio::time::sleep(AGAIN).await;
                    continue;
                }
            }
        }
        let protocol = [JOIN, CONTROL, SERVICE][usize::try_from(dice.below(3))?];
        let size = usize::try_from(dice.below(4096))?;
        let compare = control::encode(&ControlRequest::Compare {
            subnet: hand.subnet,
            hash: [0; 32],
        });
        let probe = control::encode(&JoinRequest::Probe(hand.subnet));
        let body = match dice.below(5) {
            0 => dice.bytes(size),
            1 => [compare, dice.bytes(3)].concat(),
            2 => probe.get(..probe.len() / 2).unwrap_or_default().to_vec(),
            // A push that promises four thousand million records.
            3 => [&[2][..], &hand.subnet.0, &[0xff, 0xff, 0xff, 0xff, 0x0f]].concat(),
            _ => [probe, dice.bytes(size)].concat(),
        };
        tally.add(if slip(&peer, protocol, dice, &body).await.is_ok() {
            "sent"
        } else {
            "not-taken"
        });
    }
    Ok(tally)
}

/// One body, with a length that may lie.
async fn slip(peer: &Peer, protocol: &str, dice: &mut Dice, body: &[u8]) -> Result<()> {
    let mut stream = peer.open(protocol).await?;
    let length = match dice.below(4) {
        0 => u32::MAX,
        1 => u32::try_from(body.len())?.saturating_add(100),
        _ => u32::try_from(body.len())?,
    };
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(body).await?;
    Ok(stream.flush().await?)
}

/// Tries which of these addresses take a TCP connection from here.
pub async fn knock(doors: &[SocketAddr], from: Option<IpAddr>) -> Tally {
    let mut tally = Tally::default();
    for door in doors {
        let opened = tokio::time::timeout(Duration::from_secs(1), bare(*door, from)).await;
        tally.add(if matches!(opened, Ok(Ok(_))) {
            "open"
        } else {
            "closed"
        });
    }
    tally
}

/// Asks for whoever an ID ends or begins with: keys are tried until one fits. The key, and how many were tried.
pub fn grind(dice: &mut Dice, word: &str, at_end: bool) -> (SigningKey, u64) {
    for tries in 1.. {
        let key = fresh(dice);
        let text = peer_of(&key).to_string();
        // What every ID begins with stands before the part that can be chosen.
        let fits = if at_end {
            text.ends_with(word)
        } else {
            text.get(8..).is_some_and(|t| t.starts_with(word))
        };
        if fits {
            return (key, tries);
        }
    }
    (fresh(dice), u64::MAX)
}
