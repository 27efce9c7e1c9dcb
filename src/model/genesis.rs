//! The founding statement of a subnet.

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::id::{Name, PeerId, SubnetId};
use super::policy::{is_pool4, is_pool6, is_subnet_domain};
use super::record::{RecordError, decode, encode};

/// The rule for joiners that bring no invite, only the subnet's ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Admission {
    /// The owner or an admin approves each.
    #[default]
    Approve,
    /// Whoever knows the ID is let in.
    Open,
}

/// Where the version 6 prefix comes from. It cannot simply stand in the genesis: the ID is the genesis' hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prefix6 {
    /// The subnet has no IPv6 pool.
    None,
    /// `fd` and 40 bits of the ID: a unique local /48 (RFC 4193).
    Derived,
    /// The founder chose this prefix.
    Given(Ipv6Net),
}

/// The founding statement. Its hash is the subnet's ID, so the ID alone authenticates owner and parameters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// Version of the format; only 1 is read.
    pub version: u8,
    /// The founder's key, which signs the heads.
    pub owner: PeerId,
    /// Name that the founder gave; members may call the subnet otherwise on their machines.
    pub name: Name,
    /// The IPv4 pool, where the subnet has one.
    pub cidr4: Option<Ipv4Net>,
    /// The IPv6 pool, or how it follows from the ID.
    pub cidr6: Prefix6,
    /// Prefix length of one member's IPv4 block.
    pub block4: u8,
    /// The rule for joiners that bring no invite.
    pub admission: Admission,
    /// Domain of the names, without the last dot.
    pub domain: String,
    /// Seconds that a full grant lasts.
    pub grant_life: u64,
    /// When the subnet was founded, in seconds since 1970.
    pub created: u64,
    /// Random bytes that make two subnets of one founder differ.
    pub salt: [u8; 16],
}

impl Genesis {
    /// The canonical bytes, whose hash is the subnet's ID.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads canonical bytes and checks that they make sense.
    ///
    /// # Errors
    /// [`RecordError`] for what no founder would have made.
    pub fn parse(bytes: &[u8]) -> Result<Genesis, RecordError> {
        let genesis: Genesis = decode(bytes)?;
        let block_fits = genesis
            .cidr4
            .is_none_or(|c| c.prefix_len() <= genesis.block4 && genesis.block4 <= 32);
        // Whoever made it by hand gets no further than by the command line.
        let pools_fit = genesis.cidr4.is_none_or(is_pool4)
            && !matches!(genesis.cidr6, Prefix6::Given(p) if !is_pool6(p));
        let has_pool = genesis.cidr4.is_some() || genesis.cidr6 != Prefix6::None;
        let life_fits = (60..=10 * 365 * 86_400).contains(&genesis.grant_life);
        let fits =
            block_fits && pools_fit && has_pool && life_fits && is_subnet_domain(&genesis.domain);
        if genesis.version == 1 && fits {
            Ok(genesis)
        } else {
            Err(RecordError::Nonsense("genesis"))
        }
    }

    /// The first 16 bytes of SHA-256 over `byway/genesis/1`, a zero byte and the canonical bytes.
    pub fn id(&self) -> SubnetId {
        Genesis::id_of(&self.encode())
    }

    /// The ID that belongs to the bytes of a founding statement, whether they make sense or not.
    pub fn id_of(bytes: &[u8]) -> SubnetId {
        let mut hash = Sha256::new();
        hash.update(b"byway/genesis/1\0");
        hash.update(bytes);
        let digest: [u8; 32] = hash.finalize().into();
        let mut id = [0; 16];
        id.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        SubnetId(id)
    }

    /// The IPv6 pool, derived from the ID where the genesis says so; none where there is no IPv6.
    pub fn prefix6(&self, id: SubnetId) -> Option<Ipv6Net> {
        match self.cidr6 {
            Prefix6::None => None,
            Prefix6::Given(prefix) => Some(prefix),
            Prefix6::Derived => {
                let [a, b, c, d, e, ..] = id.0;
                let octets = [0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                Ipv6Net::new(octets.into(), 48).ok()
            }
        }
    }
}

/// Whether `text` is a domain of DNS labels, lower case, at most 200 characters.
pub fn is_domain(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 200
        && text
            .split('.')
            .all(|l| l.parse::<Name>().is_ok_and(|n| n.as_str() == l))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn id_names_owner_and_parameters() {
        let genesis = Genesis {
            version: 1,
            owner: PeerId([1; 32]),
            name: "lab".parse().unwrap(),
            cidr4: Some("10.77.0.0/16".parse().unwrap()),
            cidr6: Prefix6::Derived,
            block4: 24,
            admission: Admission::Approve,
            domain: "lab.internal".into(),
            grant_life: 90 * 86_400,
            created: 1,
            salt: [0; 16],
        };
        assert_eq!(Genesis::parse(&genesis.encode()), Ok(genesis.clone()));
        let other = Genesis {
            owner: PeerId([2; 32]),
            ..genesis.clone()
        };
        assert_ne!(genesis.id(), other.id());
        let prefix = genesis.prefix6(genesis.id()).unwrap();
        assert_eq!((prefix.prefix_len(), prefix.addr().octets()[0]), (48, 0xfd));
    }

    proptest! {
        #[test]
        fn a_genesis_of_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = Genesis::parse(&bytes);
        }
    }
}
