//! Whom to attack, with which keys, from which addresses; and the answers, counted.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use byway::model::id::SubnetId;
use byway::model::join::Invite;
use byway::model::record::Signed;
use byway::wire::control::{ControlAnswer, ControlRequest, JoinAnswer, JoinRequest};
use ed25519_dalek::SigningKey;
use sha2::{Digest as _, Sha256};

use super::forge::{self, Forge, Seen};
use super::peer::{Peer, Place, peer_of};

/// Answers, by what they were.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<String, u64>);

impl Tally {
    /// One more of a kind.
    pub fn add(&mut self, what: &str) {
        self.more(what, 1);
    }

    /// So many more of a kind.
    pub fn more(&mut self, what: &str, count: u64) {
        let held = self.0.entry(what.to_owned()).or_default();
        *held = held.saturating_add(count);
    }

    /// Adds another one.
    pub fn join(&mut self, other: &Tally) {
        other
            .0
            .iter()
            .for_each(|(what, count)| self.more(what, *count));
    }

    /// What a member's request was answered.
    pub fn control(&mut self, answer: &Result<ControlAnswer>) {
        self.add(match answer {
            Ok(ControlAnswer::Done) => "done",
            Ok(ControlAnswer::Different) => "different",
            Ok(ControlAnswer::Same) => "same",
            Ok(ControlAnswer::NotMember) => "not-member",
            Ok(ControlAnswer::Records { .. }) => "records",
            Ok(ControlAnswer::Forwarded(JoinAnswer::Nonce(_))) => "nonce",
            Ok(ControlAnswer::Forwarded(JoinAnswer::Refused { .. })) => "refused",
            Ok(ControlAnswer::Forwarded(_)) => "forwarded",
            Ok(_) => "other",
            Err(_) => "no-answer",
        });
    }

    /// What a stranger's request was answered.
    pub fn joined(&mut self, answer: &Result<JoinAnswer>) {
        match answer {
            Ok(JoinAnswer::Unknown) => self.add("unknown"),
            Ok(JoinAnswer::Known) => self.add("known"),
            Ok(JoinAnswer::Nonce(_)) => self.add("nonce"),
            Ok(JoinAnswer::Pending { .. }) => self.add("pending"),
            Ok(JoinAnswer::Admitted { .. }) => self.add("admitted"),
            Ok(JoinAnswer::Refused { code, .. }) => self.add(code),
            Ok(_) => self.add("other"),
            Err(_) => self.add("no-answer"),
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self
            .0
            .iter()
            .map(|(what, count)| format!("{what}={count}"))
            .collect();
        f.write_str(&words.join(" "))
    }
}

/// Reads a key: `word:TEXT` makes one of a text, `random` a fresh one; else a key file, or a state directory that has one.
///
/// # Errors
/// There is no such file, or no key in it.
pub fn key(text: &str) -> Result<SigningKey> {
    if text == "random" {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
        return Ok(SigningKey::from_bytes(&seed));
    }
    if let Some(word) = text.strip_prefix("word:") {
        let seed: [u8; 32] = Sha256::digest(word).into();
        return Ok(SigningKey::from_bytes(&seed));
    }
    let path = Path::new(text);
    let path = if path.is_dir() {
        path.join("identity.key")
    } else {
        path.to_path_buf()
    };
    if !path.is_file() {
        bail!("{text}: no key file, no state directory, not word:TEXT and not random");
    }
    let parent = path.parent().context("a file in a directory")?;
    Ok(SigningKey::from_bytes(&*byway::store::identity(
        parent,
        Some(&path),
        true,
    )?))
}

/// A hand that is raised against somebody.
#[derive(Clone)]
pub struct Hand {
    /// Where the victims listen.
    pub to: Vec<Place>,
    /// The subnet it is about.
    pub subnet: SubnetId,
    /// Signs what is said.
    pub key: SigningKey,
    /// Carries what was said: the key the connections are made with. Else it is the same.
    pub carrier: Option<SigningKey>,
    /// Our addresses, used in turn; empty: whatever the kernel picks.
    pub from: Vec<IpAddr>,
}

impl Hand {
    /// Forges with our key.
    pub fn forge(&self) -> Forge<'_> {
        Forge {
            subnet: self.subnet,
            key: &self.key,
        }
    }

    /// The address whose turn it is.
    pub fn source(&self, turn: usize) -> Option<IpAddr> {
        turn.checked_rem(self.from.len())
            .and_then(|at| self.from.get(at).copied())
    }

    /// The first victim.
    ///
    /// # Errors
    /// There is none.
    pub fn first(&self) -> Result<Place> {
        self.to.first().copied().context("--to names nobody")
    }

    /// Connects to a victim as who carries.
    ///
    /// # Errors
    /// See [`Peer::dial`].
    pub async fn dial(&self, place: Place) -> Result<Peer> {
        Peer::dial(
            place,
            self.carrier.as_ref().unwrap_or(&self.key),
            self.source(0),
        )
        .await
    }

    /// What the first victim holds, as it tells a member.
    ///
    /// # Errors
    /// It does not tell: we are no member there.
    pub async fn pull(&self) -> Result<Seen> {
        self.pull_from(self.first()?).await
    }

    /// What a victim holds, as it tells a member.
    ///
    /// # Errors
    /// It does not tell: we are no member there.
    pub async fn pull_from(&self, place: Place) -> Result<Seen> {
        let request = ControlRequest::Pull {
            subnet: self.subnet,
            have: vec![],
        };
        match self.dial(place).await?.control(&request).await? {
            ControlAnswer::Records { records, .. } => Ok(Seen::of(records)),
            other => bail!("the victim does not tell its records: {other:?}"),
        }
    }

    /// Hands records to every victim, as many at a time as fit one message.
    ///
    /// # Errors
    /// No victim can be reached.
    pub async fn push(&self, records: &[Signed]) -> Result<Tally> {
        let (mut tally, mut reached) = (Tally::default(), false);
        for place in &self.to {
            let Ok(peer) = self.dial(*place).await else {
                tally.add("unreachable");
                continue;
            };
            reached = true;
            for records in parts(records) {
                let request = ControlRequest::Push {
                    subnet: self.subnet,
                    records: records.to_vec(),
                };
                tally.control(&peer.control(&request).await);
            }
        }
        if reached {
            Ok(tally)
        } else {
            bail!("no victim can be reached: {tally}")
        }
    }

    /// Joins like anybody: by an invite, or by the ID alone. What the records say then.
    ///
    /// # Errors
    /// We are not let in.
    pub async fn join(&self, invite: Option<&Invite>, name: &str) -> Result<Seen> {
        let peer = Peer::dial(self.first()?, &self.key, self.source(0)).await?;
        let mut proof = None;
        if let Some(invite) = invite {
            let (issuer, joiner) = (invite.issuer, peer_of(&self.key));
            let request = JoinRequest::Nonce {
                subnet: self.subnet,
                issuer,
                joiner,
            };
            match peer.join(&request).await? {
                JoinAnswer::Nonce(nonce) => proof = Some(forge::proof(invite, &self.key, nonce)),
                other => bail!("no nonce: {other:?}"),
            }
        }
        let ask = forge::ask(self.subnet, &self.key, name, proof);
        match peer.join(&JoinRequest::Ask(ask)).await? {
            JoinAnswer::Admitted { records, .. } => Ok(Seen::of(records)),
            other => bail!("not let in: {other:?}"),
        }
    }
}

/// Cuts records into what one message may hold.
fn parts(records: &[Signed]) -> Vec<&[Signed]> {
    let (mut all, mut start, mut bytes) = (Vec::new(), 0, 0_usize);
    for (at, record) in records.iter().enumerate() {
        let size = record.body.len().saturating_add(128);
        if bytes.saturating_add(size) > 900 * 1024 && at > start {
            all.extend(records.get(start..at));
            (start, bytes) = (at, 0);
        }
        bytes = bytes.saturating_add(size);
    }
    all.extend(records.get(start..).filter(|rest| !rest.is_empty()));
    all
}
