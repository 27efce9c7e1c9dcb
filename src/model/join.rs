//! How one gets in: the signed question of a joiner, invites, and who may answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use data_encoding::HEXLOWER;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroize;

use super::error::{Code, Error, Hint, Kind, Result};
use super::id::{Name, PeerId, SubnetId};
use super::record::{Role, Term, decode, encode};

/// The characters every invite text begins with.
pub const INVITE_PREFIX: &str = "byway1";
/// Longest text that is read as an invite, in bytes.
const MAX_INVITE: usize = 4096;

/// An invite as a person pastes it: `byway1` and base58 of the canonical bytes with four bytes of their SHA-256 behind.
///
/// The 128-bit secret seeds an ed25519 key; the issuer keeps only the public key, uses and expiry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// The subnet's ID; it authenticates the owner, since it is the hash of the genesis.
    pub subnet: SubnetId,
    /// The only peer that admits by it.
    pub issuer: PeerId,
    /// 128 random bits that seed the key that proves possession.
    pub secret: [u8; 16],
    /// When the invite ends, in seconds since 1970.
    pub expires: u64,
    /// Where issuer and other members can be dialled: multiaddrs, with `/p2p/` where the peer is known.
    pub addresses: Vec<String>,
}

impl Drop for Invite {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl std::fmt::Debug for Invite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Invite")
            .field("subnet", &self.subnet)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// A text as it was before somebody sent it on: mail programs wrap lines and put `>` before them, editors put a byte order
/// mark first, people put quotes around. Nothing of that can be part of an invite or an ID.
pub fn unwrapped(text: &str) -> String {
    let joined = text.replace("=\r\n", "").replace("=\n", "");
    let part = |c: &char| {
        !c.is_whitespace()
            && !matches!(
                c,
                '"' | '\''
                    | '`'
                    | '<'
                    | '>'
                    | '\u{201c}'
                    | '\u{201d}'
                    | '\u{2018}'
                    | '\u{2019}'
                    | '\u{ab}'
                    | '\u{bb}'
            )
            && !matches!(
                c,
                '\u{feff}' | '\u{ad}' | '\u{200b}'..='\u{200d}' | '\u{2060}'
            )
    };
    joined.chars().filter(part).collect()
}

impl Invite {
    /// The invite as the text that a person pastes.
    pub fn to_text(&self) -> String {
        let mut bytes = encode(self);
        let sum = Sha256::digest(&bytes);
        bytes.extend_from_slice(sum.get(..4).unwrap_or_default());
        let text = format!("{INVITE_PREFIX}{}", bs58::encode(&bytes).into_string());
        bytes.zeroize();
        text
    }

    /// Reads an invite's text.
    ///
    /// # Errors
    /// `E-INVITE-MALFORMED` (it was cut or mistyped).
    pub fn parse(text: &str) -> Result<Invite> {
        let malformed = || {
            let message = "this is no whole invite: it was cut or mistyped; copy it again, or have a new one made";
            Error::new(Kind::Refused, Code::InviteMalformed, message).hint(Hint::NewInvite)
        };
        let text = unwrapped(text);
        let body = text
            .strip_prefix(INVITE_PREFIX)
            .filter(|b| b.len() <= MAX_INVITE)
            .ok_or_else(malformed)?;
        let bytes = bs58::decode(body).into_vec().map_err(|_| malformed())?;
        let (payload, sum) = bytes
            .len()
            .checked_sub(4)
            .and_then(|n| bytes.split_at_checked(n))
            .ok_or_else(malformed)?;
        if Sha256::digest(payload).get(..4) != Some(sum) {
            return Err(malformed());
        }
        let invite: Invite = decode(payload).map_err(|_| malformed())?;
        let sane = invite.addresses.len() <= 16
            && invite
                .addresses
                .iter()
                .all(|a| a.len() <= 256 && !a.chars().any(char::is_control));
        if sane { Ok(invite) } else { Err(malformed()) }
    }

    /// The key that proves that a joiner has the invite, derived from its secret.
    pub fn key(&self) -> SigningKey {
        let mut hash = Sha256::new();
        hash.update(b"byway/invite-key/1\0");
        hash.update(self.secret);
        let mut seed: [u8; 32] = hash.finalize().into();
        let key = SigningKey::from_bytes(&seed);
        seed.zeroize();
        key
    }
}

/// What the issuer keeps of an invite.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Issued {
    /// Public half of the invite's key.
    pub public: [u8; 32],
    /// The seat in which it was made ([`Seat::since`](super::record::Seat::since)), 0 at the owner.
    pub seat: u64,
    /// The generation of the issuer's own grant when it was made.
    pub generation: u32,
    /// How many joiners may use it.
    pub uses: u32,
    /// The peers that used it; one that asks again does not count twice.
    pub used: Vec<PeerId>,
    /// When the invite ends, in seconds since 1970.
    pub expires: u64,
    /// The role that the joiner gets.
    pub role: Role,
    /// The labels that the joiner gets in its grant.
    pub labels: BTreeMap<String, String>,
    /// How long the joiner's grants are meant to last.
    pub term: Term,
    /// Whether it was revoked; a revoked invite lets nobody in.
    pub revoked: bool,
}

impl Issued {
    /// What `invite ls` shows: the first eight hex digits of the public key, which is what `invite revoke` takes.
    pub fn id(&self) -> String {
        HEXLOWER.encode(self.public.get(..4).unwrap_or_default())
    }

    /// Whether `joiner` may come in by it at `now`. One that used it and `declined` may use it again: it holds its place
    /// among the uses, and nobody else gets it.
    ///
    /// # Errors
    /// `E-INVITE-REVOKED`, `E-INVITE-EXPIRED`, `E-INVITE-USED`.
    pub fn admits(&self, joiner: PeerId, declined: bool, now: u64) -> Result<()> {
        let refuse = |code, why: &str| {
            Err(
                Error::new(Kind::Refused, code, format!("invite {} {why}", self.id()))
                    .hint(Hint::NewInvite),
            )
        };
        let used = self.used.contains(&joiner);
        let used_up = self.used.len() >= self.uses as usize;
        match () {
            () if self.revoked => refuse(Code::InviteRevoked, "was revoked"),
            () if now >= self.expires => refuse(Code::InviteExpired, "has expired"),
            () if used && declined => Ok(()),
            // Who used it and is a member needs no invite; who used it and was removed does not come back by it.
            () if used => refuse(Code::InviteUsed, "was used already by this machine"),
            () if used_up => refuse(Code::InviteUsed, "was used already"),
            () => Ok(()),
        }
    }
}

/// A joiner's question, signed with its identity so that any member may pass it on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// The subnet that the joiner asks to enter.
    pub subnet: SubnetId,
    /// The peer that asks; its key signs the question.
    pub joiner: PeerId,
    /// The joiner's X25519 key for data sessions.
    pub data_key: [u8; 32],
    /// The joiner's X25519 key for sealing, which is another one. The signature of the question
    /// binds both to the joiner.
    pub seal_key: [u8; 32],
    /// The member name that the joiner wants.
    pub name: Name,
    /// Whether another name will do, since no person chose this one.
    pub name_is_default: bool,
    /// The address that the joiner wants; none where any will do.
    pub ip: Option<IpAddr>,
    /// When it was asked, in seconds since 1970 by the joiner's clock.
    pub asked: u64,
    /// Proof that the joiner holds an invite; none where it knows only the ID.
    pub proof: Option<Proof>,
}

/// Proof that the joiner holds an invite's secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Public half of the invite's key.
    pub public: [u8; 32],
    /// The peer that issued the invite.
    pub issuer: PeerId,
    /// The nonce that was given out for this attempt, so that a proof serves once.
    pub nonce: [u8; 16],
    /// Signature by the invite's key, two halves.
    pub signature: ([u8; 32], [u8; 32]),
}

/// An [`Ask`] with the joiner's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedAsk {
    /// The canonical bytes of the [`Ask`], which the signature covers.
    pub body: Vec<u8>,
    /// Signature by the joiner's identity, two halves.
    pub signature: ([u8; 32], [u8; 32]),
}

fn proof_message(subnet: SubnetId, joiner: PeerId, issuer: PeerId, nonce: [u8; 16]) -> Vec<u8> {
    [
        b"byway/invite/1\0".as_slice(),
        &subnet.0,
        &joiner.0,
        &issuer.0,
        &nonce,
    ]
    .concat()
}

/// Signs `message` and gives the two halves.
fn sign(key: &SigningKey, message: &[u8]) -> ([u8; 32], [u8; 32]) {
    let signature = key.sign(message);
    (*signature.r_bytes(), *signature.s_bytes())
}

fn verified(key: &[u8; 32], message: &[u8], (r, s): ([u8; 32], [u8; 32])) -> bool {
    VerifyingKey::from_bytes(key).is_ok_and(|k| {
        k.verify_strict(message, &Signature::from_components(r, s))
            .is_ok()
    })
}

impl Proof {
    /// Proves possession of `invite` for one attempt.
    pub fn new(invite: &Invite, joiner: PeerId, nonce: [u8; 16]) -> Proof {
        let key = invite.key();
        let message = proof_message(invite.subnet, joiner, invite.issuer, nonce);
        Proof {
            public: key.verifying_key().to_bytes(),
            issuer: invite.issuer,
            nonce,
            signature: sign(&key, &message),
        }
    }

    /// Whether the proof is for this subnet, joiner, issuer and nonce.
    pub fn holds(&self, subnet: SubnetId, joiner: PeerId, issuer: PeerId, nonce: [u8; 16]) -> bool {
        self.nonce == nonce
            && self.issuer == issuer
            && verified(
                &self.public,
                &proof_message(subnet, joiner, issuer, nonce),
                self.signature,
            )
    }
}

impl SignedAsk {
    /// Encodes a question and signs it with the joiner's key.
    pub fn new(ask: &Ask, key: &SigningKey) -> SignedAsk {
        let body = encode(ask);
        let signature = sign(key, &[b"byway/ask/1\0".as_slice(), &body].concat());
        SignedAsk { body, signature }
    }

    /// Checks signature and canonical form.
    ///
    /// # Errors
    /// `E-ASK` for what its joiner did not sign.
    pub fn verify(&self) -> Result<Ask> {
        let bad = || {
            Error::new(
                Kind::Refused,
                Code::Ask,
                "the join request is not signed by who asks",
            )
        };
        let ask: Ask = if self.body.len() <= 4096 {
            decode(&self.body).map_err(|_| bad())?
        } else {
            return Err(bad());
        };
        let message = [b"byway/ask/1\0".as_slice(), &self.body].concat();
        // A grant of one key for both purposes is none: it is refused before anybody is asked.
        let good =
            ask.seal_key != ask.data_key && verified(&ask.joiner.0, &message, self.signature);
        if good { Ok(ask) } else { Err(bad()) }
    }
}

/// What a joiner asks strangers for before it names the subnet: who knows the ID knows what is meant, and nobody learns it.
/// The first 16 bytes of SHA-256 over `byway/lookup/1`, a zero byte and the ID.
pub fn lookup(subnet: SubnetId) -> [u8; 16] {
    let mut hash = Sha256::new();
    hash.update(b"byway/lookup/1\0");
    hash.update(subnet.0);
    let digest: [u8; 32] = hash.finalize().into();
    let mut short = [0; 16];
    short
        .iter_mut()
        .zip(digest)
        .for_each(|(to, from)| *to = from);
    short
}

/// What two people compare before one approves the other: the first 60 bits of SHA-256 of the peer's key, as five groups of digits.
pub fn fingerprint(peer: PeerId) -> String {
    let digest = Sha256::digest(peer.0);
    let groups: Vec<String> = digest
        .chunks(2)
        .take(5)
        .map(|pair| {
            let value = pair.iter().fold(0u32, |sum, b| (sum << 8) | u32::from(*b));
            format!("{value:05}")
        })
        .collect();
    groups.join("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn invite() -> Invite {
        Invite {
            subnet: SubnetId([1; 16]),
            issuer: PeerId([2; 32]),
            secret: [3; 16],
            expires: 9,
            addresses: vec!["/ip4/1.2.3.4/tcp/4100".into()],
        }
    }

    #[test]
    fn every_changed_character_of_an_invite_is_noticed() {
        let text = invite().to_text();
        assert_eq!(Invite::parse(&format!(" {text}\n")), Ok(invite()));
        for i in INVITE_PREFIX.len()..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[i] = if forged[i] == b'2' { b'3' } else { b'2' };
            assert!(
                Invite::parse(std::str::from_utf8(&forged).unwrap()).is_err(),
                "character {i}"
            );
        }
    }

    #[test]
    fn a_proof_holds_for_one_attempt_only() {
        let proof = Proof::new(&invite(), PeerId([5; 32]), [7; 16]);
        assert!(proof.holds(SubnetId([1; 16]), PeerId([5; 32]), PeerId([2; 32]), [7; 16]));
        assert!(!proof.holds(SubnetId([1; 16]), PeerId([5; 32]), PeerId([2; 32]), [8; 16]));
        assert!(!proof.holds(SubnetId([1; 16]), PeerId([6; 32]), PeerId([2; 32]), [7; 16]));
        assert!(!proof.holds(SubnetId([9; 16]), PeerId([5; 32]), PeerId([2; 32]), [7; 16]));
    }

    #[test]
    fn both_keys_of_a_joiner_are_bound_to_it_and_differ() {
        let key = SigningKey::from_bytes(&[5; 32]);
        let ask = Ask {
            subnet: SubnetId([1; 16]),
            joiner: PeerId(key.verifying_key().to_bytes()),
            data_key: [0x61; 32],
            seal_key: [0x62; 32],
            name: "web".parse().unwrap(),
            name_is_default: true,
            ip: None,
            asked: 1,
            proof: None,
        };
        let signed = SignedAsk::new(&ask, &key);
        assert_eq!(signed.verify(), Ok(ask.clone()));
        for own in [0x61, 0x62] {
            let mut forged = signed.clone();
            let at = forged
                .body
                .windows(32)
                .position(|bytes| bytes == [own; 32])
                .unwrap();
            forged.body[at] ^= 1;
            assert_eq!(
                forged.verify().unwrap_err().code,
                Code::Ask,
                "another key than the joiner's own"
            );
        }
        let one = Ask {
            seal_key: ask.data_key,
            ..ask
        };
        assert_eq!(
            SignedAsk::new(&one, &key).verify().unwrap_err().code,
            Code::Ask,
            "one key for both"
        );
    }

    #[test]
    fn one_use_has_one_winner() {
        let mut issued = Issued {
            public: [0; 32],
            seat: 0,
            generation: 1,
            uses: 1,
            used: vec![],
            expires: 10,
            role: Role::Member,
            labels: BTreeMap::new(),
            term: Term::Full,
            revoked: false,
        };
        let (winner, other) = (PeerId([1; 32]), PeerId([2; 32]));
        assert!(issued.admits(winner, false, 5).is_ok());
        issued.used.push(winner);
        // Who used it itself is told so: its other uses are for other machines.
        for (joiner, why) in [
            (winner, "was used already by this machine"),
            (other, "was used already"),
        ] {
            let error = issued.admits(joiner, false, 5).unwrap_err();
            assert_eq!(error.code, Code::InviteUsed);
            assert!(error.message.ends_with(why), "{}", error.message);
        }
        assert_eq!(issued.admits(winner, true, 5), Ok(()), "it could not come");
        assert_eq!(
            issued.admits(other, true, 5).unwrap_err().code,
            Code::InviteUsed,
            "its place is nobody else's"
        );
        assert_eq!(
            issued.admits(winner, true, 10).unwrap_err().code,
            Code::InviteExpired
        );
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in ".{0,200}", bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Invite::parse(&text);
            let _ = Invite::parse(&format!("byway1{}", bs58::encode(&bytes).into_string()));
            let _ = SignedAsk { body: bytes, signature: ([0; 32], [0; 32]) }.verify();
        }
    }
}
