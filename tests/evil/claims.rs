//! Moves made of records: who is out, who holds what, whose name it is, and when that was said.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use byway::model::id::{Name, PeerId, SubnetId};
use byway::model::record::{Announcement, Grant, Role, Signed};
use byway::model::zone::RecordData;
use byway::wire::control::JoinRequest;
use ed25519_dalek::SigningKey;
use ipnet::IpNet;
use libp2p::Multiaddr;

use super::dice::Dice;
use super::forge::{self, Forge, Seen, announcement, greedy, now, now_ms};
use super::hand::{Hand, Tally};
use super::peer::{Manners, Peer, peer_of};

/// Signs so many revocations of peers that exist nowhere, in as many batches (heads, hostile.md H2).
///
/// # Errors
/// The victim does not show its records to us, or cannot be reached.
pub async fn heads(hand: &Hand, dice: &mut Dice, batches: u64, revocations: u64) -> Result<Tally> {
    let (seen, mut tally) = (hand.pull().await?, Tally::default());
    for _ in 0..batches {
        // Of peers nobody knows, and of members that were made up for it.
        let out: BTreeMap<PeerId, u32> = (0..revocations / 2)
            .map(|_| (PeerId(dice.key()), 1))
            .collect();
        let mut records = hand.forge().revocations(&seen, &out);
        records.extend(
            hand.forge()
                .made_up_and_out(&seen, dice, revocations.div_ceil(2)),
        );
        tally.join(&hand.push(&records).await?);
    }
    Ok(tally)
}

/// Puts given peers out, up to and with the greatest generation there is: nobody could ever admit them again.
///
/// # Errors
/// As [`heads`].
pub async fn revoke(hand: &Hand, peers: &[PeerId], generation: u32) -> Result<Tally> {
    let seen = hand.pull().await?;
    let out = peers.iter().map(|p| (*p, generation)).collect();
    hand.push(&hand.forge().revocations(&seen, &out)).await
}

/// Says the owner's word: that nobody else administers, that we do, or that the subnet is over.
///
/// # Errors
/// As [`heads`].
pub async fn usurp(hand: &Hand, ends: bool) -> Result<Tally> {
    let seen = hand.pull().await?;
    let numbers = [
        seen.number().saturating_add(1),
        seen.number().saturating_add(1 << 31),
        u64::MAX,
    ];
    let forge = hand.forge();
    let records: Vec<Signed> = numbers
        .iter()
        .map(|n| forge.head(peer_of(&hand.key), ends, *n, now()))
        .collect();
    hand.push(&records).await
}

/// What a forged grant claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shape {
    /// Both pools, and the addresses of everybody, for ourselves, dated before everybody's.
    Pool,
    /// The role of the owner, the leases and the name of another member, for ourselves.
    Crown,
    /// The block of one other member, beside our own.
    Block,
    /// So many members that exist nowhere, 20 KB each.
    MadeUp,
    /// Every member that was removed, once more, as an admin.
    Again,
    /// Us, for ever, with the greatest generation.
    Ever,
    /// Every other member, with nothing, under another name and for a moment, as what was said last of it.
    Others,
}

fn addresses_of(grants: &[(PeerId, Grant)], but: PeerId) -> Vec<IpAddr> {
    let mut all: Vec<IpAddr> = grants
        .iter()
        .filter(|(_, g)| g.subject != but)
        .flat_map(|(_, g)| g.addresses.iter().copied())
        .collect();
    all.sort();
    all.dedup();
    all
}

/// The prefixes that hold every lease: the pools as a claimant would take them.
fn pools(seen: &Seen) -> Vec<IpNet> {
    let leases: Vec<IpNet> = seen
        .grants
        .iter()
        .flat_map(|(_, g)| g.leases.iter().copied())
        .collect();
    let wide = |v4: bool| {
        let of_family: Vec<&IpNet> = leases.iter().filter(|l| l.addr().is_ipv4() == v4).collect();
        let first = of_family.first()?;
        let length = if v4 { 16 } else { 48 };
        IpNet::new(first.addr(), length).ok().map(|p| p.trunc())
    };
    [wide(true), wide(false)].into_iter().flatten().collect()
}

/// The grants of a shape, as the key of `hand` signs them.
pub fn shaped(
    hand: &Hand,
    seen: &Seen,
    dice: &mut Dice,
    shape: Shape,
    count: u64,
) -> Result<Vec<Signed>> {
    let (forge, me) = (hand.forge(), peer_of(&hand.key));
    let seat = seen.seat(me);
    let mine = || seen.grant(me).cloned().context("we hold no grant there");
    let others: Vec<&Grant> = seen
        .grants
        .iter()
        .map(|(_, g)| g)
        .filter(|g| g.subject != me && !g.addresses.is_empty())
        .collect();
    let other = dice.pick(&others).copied();
    let grants = match shape {
        Shape::Pool => {
            let victims = addresses_of(&seen.grants, me).into_iter().take(8).collect();
            vec![greedy(&mine()?, seat, victims, pools(seen))]
        }
        Shape::Crown => {
            let other = other.context("nobody else is a member")?;
            let crown = Grant {
                role: Role::Owner,
                name: other.name.clone(),
                ..mine()?
            };
            vec![greedy(
                &crown,
                seat,
                other.addresses.clone(),
                other.leases.clone(),
            )]
        }
        Shape::Block => {
            let (other, mine) = (other.context("nobody else is a member")?, mine()?);
            let leases = [mine.leases.clone(), other.leases.clone()].concat();
            let addresses = [mine.addresses.clone(), other.addresses.clone()].concat();
            vec![Grant {
                role: mine.role,
                ..greedy(&mine, seat, addresses.into_iter().take(8).collect(), leases)
            }]
        }
        Shape::MadeUp => (0..count)
            .map(|_| forge::made_up(dice, now(), seat))
            .collect(),
        Shape::Again => let_in_again(seen, seat),
        Shape::Ever => {
            let mine = mine()?;
            let ever = Grant {
                generation: u32::MAX,
                not_after: u64::MAX,
                ..mine.clone()
            };
            vec![Grant {
                leases: mine.leases.clone(),
                ..greedy(&ever, seat, mine.addresses.clone(), mine.leases)
            }]
        }
        Shape::Others => stripped(&others, seat),
    };
    Ok(grants.into_iter().map(|g| forge.grant(g)).collect())
}

/// Everybody who was removed is an admin, one generation up.
fn let_in_again(seen: &Seen, seat: u64) -> Vec<Grant> {
    let gone = seen.revocations.iter().map(|(_, r)| r.subject);
    let again = |g: &Grant| Grant {
        role: Role::Admin,
        generation: g.generation.saturating_add(1),
        seat,
        version: g.version.saturating_add(1),
        not_before: now(),
        not_after: now().saturating_add(86_400),
        ..g.clone()
    };
    gone.filter_map(|p| seen.grant(p)).map(again).collect()
}

/// The others have no address, no name of their own, and end in two seconds.
fn stripped(others: &[&Grant], seat: u64) -> Vec<Grant> {
    let name = Name::from_host("nobody");
    let less = |g: &Grant| Grant {
        name: name.clone(),
        data_key: [1; 32],
        seal_key: [2; 32],
        role: Role::Member,
        not_after: now().saturating_add(2),
        ..greedy(g, seat, vec![], vec![])
    };
    others.iter().copied().map(less).collect()
}

/// Hands forged grants to every victim.
///
/// # Errors
/// As [`heads`]; the shape needs a member that is not there.
pub async fn grants(hand: &Hand, dice: &mut Dice, shape: Shape, count: u64) -> Result<Tally> {
    // Members that exist nowhere can be granted without knowing anybody.
    let seen = match hand.pull().await {
        Err(_) if shape == Shape::MadeUp => Seen::default(),
        seen => seen?,
    };
    let records = shaped(hand, &seen, dice, shape, count)?;
    if records.is_empty() {
        bail!("there is nobody to grant anything");
    }
    // Five at a time: a message of 100 KB each, as an accomplice would pass them on.
    let mut tally = Tally::default();
    for some in records.chunks(5) {
        tally.join(&hand.push(some).await?);
    }
    Ok(tally)
}

/// A name to take: of a workload (`db=10.77.2.9`), or anything else that DNS answers (`db.b=10.77.2.9`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    name: String,
    address: Option<IpAddr>,
}

impl FromStr for Claim {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Claim> {
        let (name, address) = text
            .split_once('=')
            .map_or((text, None), |(n, a)| (n, Some(a)));
        Ok(Claim {
            name: name.to_owned(),
            address: address.map(str::parse).transpose()?,
        })
    }
}

/// Our newest announcement with something put in.
fn restated(seen: &Seen, me: PeerId) -> Announcement {
    match seen.announcement(me) {
        Some(held) => Announcement {
            version: held.version.saturating_add(1_000_000),
            issued: now(),
            ..held.clone()
        },
        None => announcement(now_ms(), now()),
    }
}

/// An address inside our own lease that is not our own.
fn spare(grant: &Grant) -> Result<IpAddr> {
    let lease = grant
        .leases
        .iter()
        .find(|l| l.addr().is_ipv4())
        .context("no IPv4 lease")?;
    lease
        .hosts()
        .nth(200)
        .or_else(|| lease.hosts().last())
        .context("an empty lease")
}

/// Claims names, as workloads and as entries.
///
/// # Errors
/// As [`heads`].
pub async fn names(hand: &Hand, claims: &[Claim], as_workload: bool) -> Result<Tally> {
    let (seen, me) = (hand.pull().await?, peer_of(&hand.key));
    let mine = seen.grant(me).context("we hold no grant there")?;
    let mut announcement = restated(&seen, me);
    for claim in claims {
        let address = claim.address.map_or_else(|| spare(mine), Ok)?;
        match claim.name.parse::<Name>() {
            Ok(name) if as_workload => {
                // Two workloads of one member may not hold one address: what stood there gives way.
                announcement
                    .workloads
                    .retain(|w| !w.addresses.contains(&address));
                announcement
                    .workloads
                    .push(forge::workload(name, vec![address]));
            }
            _ => announcement
                .names
                .push(forge::name(&claim.name, RecordData::Address(address))),
        }
    }
    hand.push(&[hand.forge().announcement(announcement)]).await
}

/// Names addresses that are not ours, in an announcement and by identify, so that the victims dial them.
///
/// # Errors
/// As [`heads`].
pub async fn dials(hand: &Hand, addresses: &[Multiaddr], claimed: u32) -> Result<Tally> {
    let (seen, me) = (hand.pull().await?, peer_of(&hand.key));
    let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let mut tally = Tally::default();
    for endpoints in texts.chunks(32) {
        let announcement = Announcement {
            endpoints: endpoints.to_vec(),
            ..restated(&seen, me)
        };
        tally.join(
            &hand
                .push(&[hand.forge().announcement(announcement)])
                .await?,
        );
    }
    // A message of identify holds some 300 addresses; as many are said as asked for.
    let made_up = |n: u32| -> Result<Multiaddr> {
        Ok(format!("/ip4/{}/tcp/4100", std::net::Ipv4Addr::from(n)).parse()?)
    };
    let first = u32::from_be_bytes([10, 66, 0, 0]);
    let all: Vec<Multiaddr> = addresses
        .iter()
        .cloned()
        .map(Ok)
        .chain((0..claimed).map(|n| made_up(first + n)))
        .collect::<Result<_>>()?;
    for place in &hand.to {
        let manners = Manners {
            claimed: all.iter().take(250).cloned().collect(),
        };
        let key = hand.carrier.as_ref().unwrap_or(&hand.key);
        let peer = Peer::dial_as(*place, key, hand.source(0), manners).await?;
        for some in all.chunks(250) {
            tally.add(if peer.push_identify(some).await.is_ok() {
                "identified"
            } else {
                "not-identified"
            });
        }
        // Stay until the victim has asked who we are.
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    Ok(tally)
}

/// Says things from a time that has not come: an announcement, and where we have a say a grant, and the owner's word.
///
/// # Errors
/// As [`heads`].
pub async fn clock(hand: &Hand, ahead: u64) -> Result<Tally> {
    let (seen, me) = (hand.pull().await?, peer_of(&hand.key));
    let then = now().saturating_add(ahead);
    let forge = hand.forge();
    let held = seen
        .announcement(me)
        .cloned()
        .unwrap_or_else(|| announcement(0, 0));
    let mut records = vec![forge.announcement(Announcement {
        version: u64::MAX - 1,
        issued: then,
        ..held
    })];
    if let Some(grant) = seen.grant(me) {
        let (not_after, version) = (then.saturating_add(86_400), grant.version.saturating_add(1));
        records.push(forge.grant(Grant {
            not_before: then,
            not_after,
            version,
            seat: seen.seat(me),
            ..grant.clone()
        }));
    }
    records.push(forge.head(me, false, seen.number().saturating_add(1), then));
    hand.push(&records).await
}

/// Says again what was said: cut, changed in one bit, for another subnet, in our own name, and as it was.
///
/// # Errors
/// As [`heads`].
pub async fn replay(hand: &Hand, dice: &mut Dice) -> Result<Tally> {
    let seen = hand.pull().await?;
    let mut records = Vec::new();
    for record in &seen.records {
        let mut flipped = record.clone();
        let at = dice.below(flipped.body.len() as u64);
        if let Some(byte) = usize::try_from(at)
            .ok()
            .and_then(|at| flipped.body.get_mut(at))
        {
            *byte ^= 1 << dice.below(8);
        }
        let mut cut = record.clone();
        cut.body.truncate(cut.body.len() / 2);
        let elsewhere = Signed {
            subnet: SubnetId([3; 16]),
            ..record.clone()
        };
        let ours = Signed {
            issuer: peer_of(&hand.key),
            ..record.clone()
        };
        records.extend([flipped, cut, elsewhere, ours, record.clone()]);
    }
    hand.push(&records).await
}

/// Two admins that were removed let each other in again: `hand` and `partner` sign for each other, an accomplice carries.
///
/// # Errors
/// As [`heads`]; neither was ever a member.
pub async fn mutual(hand: &Hand, partner: &SigningKey) -> Result<Tally> {
    let seen = hand.pull().await?;
    let again = |key: &SigningKey, subject: &SigningKey| -> Result<Signed> {
        let held = seen.grant(peer_of(subject)).context("never a member")?;
        let grant = Grant {
            role: Role::Admin,
            generation: held.generation.saturating_add(1),
            version: held.version.saturating_add(1),
            // The seat that its last grants had, or one that is still to come.
            seat: seen.number(),
            not_before: now(),
            not_after: now().saturating_add(86_400),
            ..held.clone()
        };
        Ok(Forge {
            subnet: hand.subnet,
            key,
        }
        .grant(grant))
    };
    hand.push(&[again(&hand.key, partner)?, again(partner, &hand.key)?])
        .await
}

/// Registers names for ourselves, and takes them from who has them.
///
/// # Errors
/// As [`heads`].
pub async fn register(hand: &Hand, names: &[String]) -> Result<Tally> {
    let (seen, me) = (hand.pull().await?, peer_of(&hand.key));
    let others: Vec<PeerId> = seen
        .announcements
        .iter()
        .map(|(of, _)| *of)
        .filter(|p| *p != me)
        .collect();
    hand.push(&hand.forge().registration(&seen, me, &others, names))
        .await
}

/// Says things of a kind that nobody knows, 4 KB each.
///
/// # Errors
/// No victim can be reached.
pub async fn items(hand: &Hand, dice: &mut Dice, count: u64) -> Result<Tally> {
    hand.push(&hand.forge().items(dice, count)).await
}

/// Shows a stranger's word where only the owner's and one's own grant are heard: heads and grants of our own making.
///
/// # Errors
/// `hand` names no victim, or it cannot be reached.
pub async fn present(hand: &Hand, dice: &mut Dice) -> Result<Tally> {
    let (forge, me, mut tally) = (hand.forge(), peer_of(&hand.key), Tally::default());
    let seat = dice.below(4);
    let own = Grant {
        subject: me,
        ..forge::made_up(dice, now(), seat)
    };
    let small = Grant {
        labels: BTreeMap::new(),
        ..own.clone()
    };
    let head = || forge.head(me, true, u64::MAX, now());
    for place in &hand.to {
        let peer = Peer::dial(*place, &hand.key, hand.source(0)).await?;
        for records in [
            vec![head()],
            vec![forge.grant(own.clone())],
            vec![head(), forge.grant(small.clone())],
        ] {
            tally.joined(
                &peer
                    .join(&JoinRequest::Show {
                        subnet: hand.subnet,
                        records,
                    })
                    .await,
            );
        }
    }
    Ok(tally)
}
