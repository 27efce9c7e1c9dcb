//! Which addresses are free: the subnet's pool, a block per member, an address per workload.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::error::{Code, Error, Hint, Kind, Result};
use super::record::{Blocks, Seat};

/// Prefix length of a member's block where none was asked for: /24 of a /16, and never so large that a pool of another
/// size holds fewer than 16 members.
pub fn default_block4(pool: u8) -> u8 {
    pool.saturating_add(4).clamp(24, 32).max(pool)
}

/// Picks a /16 that no route of this machine and no other subnet here overlaps: 10.77 first, then the rest of 10/8 from
/// a place the ID seed chooses, then 172.16/12.
///
/// # Errors
/// `E-POOL-NONE` when every candidate is taken.
pub fn pick_pool4(taken: &[IpNet], seed: u8) -> Result<Ipv4Net> {
    let ten = (0..=255u8).map(|i| Ipv4Addr::new(10, seed.wrapping_add(i), 0, 0));
    std::iter::once(Ipv4Addr::new(10, 77, 0, 0))
        .chain(ten)
        .chain((16..32).map(|i| Ipv4Addr::new(172, i, 0, 0)))
        .filter_map(|base| Ipv4Net::new(base, 16).ok())
        .find(|pool| !taken.iter().any(|t| overlaps(*t, IpNet::V4(*pool))))
        .ok_or_else(|| {
            Error::new(
                Kind::Conflict,
                Code::PoolNone,
                "every private /16 overlaps a route of this machine",
            )
            .hint(Hint::FoundWithPool4)
        })
}

/// Whether two prefixes share an address.
pub fn overlaps(a: IpNet, b: IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Prefixes with what belongs to each; finds an overlap without a scan.
#[derive(Debug, Clone)]
pub struct Prefixes<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T> Default for Prefixes<T> {
    fn default() -> Self {
        Prefixes {
            v4: PrefixMap::new(),
            v6: PrefixMap::new(),
        }
    }
}

impl<T: Copy> Prefixes<T> {
    /// Enters a prefix; one that is there already gets the new value.
    pub fn insert(&mut self, prefix: IpNet, value: T) {
        match prefix {
            IpNet::V4(p) => drop(self.v4.insert(p.trunc(), value)),
            IpNet::V6(p) => drop(self.v6.insert(p.trunc(), value)),
        }
    }

    /// An entered prefix that shares an address with this one: the one around it, else one inside it.
    pub fn overlapping(&self, prefix: IpNet) -> Option<(IpNet, T)> {
        match prefix.trunc() {
            IpNet::V4(p) => {
                let found = self.v4.get_lpm(&p).or_else(|| self.v4.children(&p).next());
                found.map(|(p, value)| (IpNet::V4(p), *value))
            }
            IpNet::V6(p) => {
                let found = self.v6.get_lpm(&p).or_else(|| self.v6.children(&p).next());
                found.map(|(p, value)| (IpNet::V6(p), *value))
            }
        }
    }
}

/// The block that a member gets with its grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The prefixes of the block, one of each family the subnet has.
    pub leases: Vec<IpNet>,
    /// The member's own address in each.
    pub addresses: Vec<IpAddr>,
}

/// The address pools of a subnet, which blocks are cut from.
#[derive(Debug, Clone, Copy)]
pub struct Pools {
    /// The IPv4 pool; none where the subnet has no IPv4.
    pub v4: Option<Ipv4Net>,
    /// Prefix length of an IPv4 block.
    pub block4: u8,
    /// The IPv6 pool, whose blocks are /64; none where the subnet has no IPv6.
    pub v6: Option<Ipv6Net>,
}

/// Parts of the pool that a new admin gets one of: 16 blocks of the default pool.
const PARTS: u32 = 16;
/// Runs of blocks that one allotment has at most: a head has room for a few of each admin.
const RUNS: usize = 4;

impl Pools {
    /// Blocks in the pool, at most 65,536.
    pub fn blocks(&self) -> u32 {
        const MOST: u32 = 65_536;
        // A number of 32 bits and more is more than enough, not none.
        let number = |bits: u8| 1u32.checked_shl(u32::from(bits)).unwrap_or(MOST).min(MOST);
        let four = self
            .v4
            .map(|p| number(self.block4.saturating_sub(p.prefix_len())));
        let six = self.v6.map(|p| number(64u8.saturating_sub(p.prefix_len())));
        [four, six].into_iter().flatten().min().unwrap_or(0)
    }

    /// The block with number `index`, if both families have one.
    fn block(&self, index: u32) -> Option<Block> {
        let mut block = Block {
            leases: Vec::new(),
            addresses: Vec::new(),
        };
        if let Some(pool) = self.v4 {
            let size = 32u32.checked_sub(u32::from(self.block4))?;
            let base = u32::from(pool.network())
                .checked_add(index.checked_shl(size).filter(|_| size < 32).unwrap_or(0))?;
            let lease = Ipv4Net::new(base.into(), self.block4).ok()?;
            let own = if self.block4 >= 31 {
                base
            } else {
                base.checked_add(1)?
            };
            // Of a pool cut into single addresses the first and last are its network and broadcast address.
            if pool.prefix_len() < 31
                && (own == u32::from(pool.network()) || own == u32::from(pool.broadcast()))
            {
                return None;
            }
            block.leases.push(IpNet::V4(lease));
            block.addresses.push(IpAddr::V4(own.into()));
        }
        if let Some(pool) = self.v6 {
            let base = u128::from(pool.network()).checked_add(u128::from(index) << 64)?;
            block
                .leases
                .push(IpNet::V6(Ipv6Net::new(base.into(), 64).ok()?));
            block
                .addresses
                .push(IpAddr::V6(base.checked_add(1)?.into()));
        }
        Some(block)
    }

    /// Numbers of the blocks that a prefix of the pool touches, first and last; `None` where it reaches past the numbered
    /// ones.
    fn span(&self, prefix: IpNet) -> Option<(u32, u32)> {
        let ends = (
            self.index_of(prefix.network())?,
            self.index_of(prefix.broadcast())?,
        );
        (self.covers(prefix) && ends.1 < self.blocks()).then_some(ends)
    }

    /// Whether a prefix lies inside these blocks.
    pub fn within(&self, prefix: IpNet, part: &[Blocks]) -> bool {
        let Some((mut next, last)) = self.span(prefix) else {
            return false;
        };
        while next <= last {
            let Some(run) = part.iter().find(|b| b.contains(next)) else {
                return false;
            };
            next = run.first.saturating_add(run.count);
        }
        true
    }

    /// Blocks that a new admin gets, and more at a time.
    pub fn part_size(&self) -> u32 {
        (self.blocks() / PARTS).max(1)
    }

    /// Numbers of the blocks that `taken` touches.
    pub fn touched(&self, taken: &[IpNet]) -> BTreeSet<u32> {
        let blocks = self.blocks();
        let ends = |p: &IpNet| {
            let last = self
                .index_of(p.broadcast())
                .unwrap_or(u32::MAX)
                .min(blocks.saturating_sub(1));
            self.index_of(p.network()).map(|first| first..=last)
        };
        taken.iter().filter_map(ends).flatten().collect()
    }

    /// Up to `count` blocks that nobody uses and no seat has, from the end of the pool, in four runs at most.
    pub fn allot(&self, taken: &[IpNet], seats: &[Seat], count: u32) -> Vec<Blocks> {
        let used = self.touched(taken);
        let allotted = |index: u32| {
            seats
                .iter()
                .flat_map(|s| &s.part)
                .any(|b| b.contains(index))
        };
        let free = (1..self.blocks())
            .rev()
            .filter(|i| !used.contains(i) && !allotted(*i) && self.block(*i).is_some());
        let mut runs: Vec<Blocks> = Vec::new();
        for index in free.take(count as usize) {
            let full = runs.len() >= RUNS;
            match runs.last_mut() {
                Some(run) if run.first == index.saturating_add(1) => {
                    *run = Blocks {
                        first: index,
                        count: run.count.saturating_add(1),
                    };
                }
                _ if full => break,
                _ => runs.push(Blocks {
                    first: index,
                    count: 1,
                }),
            }
        }
        runs
    }

    /// Whether the block around an address may be given.
    pub fn is_given(&self, address: IpAddr, may: impl Fn(u32) -> bool) -> bool {
        self.index_of(address).is_none_or(may)
    }

    /// The first block that `may` be given and overlaps none of `taken`: number 1 upwards, number 0 last.
    ///
    /// With `wanted`, the block around that address, which becomes the member's own address.
    ///
    /// # Errors
    /// `E-POOL-FULL` when none is left; `E-ADDRESS-TAKEN` or `E-ADDRESS-OUTSIDE` for a wanted address.
    pub fn free_block(
        &self,
        taken: &[IpNet],
        wanted: Option<IpAddr>,
        may: impl Fn(u32) -> bool,
    ) -> Result<Block> {
        let free = |b: &Block| {
            !b.leases
                .iter()
                .any(|l| taken.iter().any(|t| overlaps(*l, *t)))
        };
        let Some(address) = wanted else {
            // Collected once: a linear scan per candidate would be quadratic in the members.
            let used: BTreeSet<IpNet> = taken.iter().copied().collect();
            let exact = |b: &Block| b.leases.iter().any(|l| used.contains(l));
            return (1..self.blocks())
                .chain(std::iter::once(0))
                .filter(|i| may(*i))
                .filter_map(|i| self.block(i))
                .find(|b| !exact(b) && free(b))
                .ok_or_else(|| {
                    Error::new(
                        Kind::Conflict,
                        Code::PoolFull,
                        format!("no free block among the {} of the pool", self.blocks()),
                    )
                    .hint(Hint::FoundLarger)
                });
        };
        let taken_error = || {
            Error::new(
                Kind::Conflict,
                Code::AddressTaken,
                format!("{address} is leased to another member"),
            )
        };
        let index = self.index_of(address).ok_or_else(|| {
            Error::new(
                Kind::Conflict,
                Code::AddressOutside,
                format!("{address} is not in the subnet's pool"),
            )
        })?;
        let mut block = self.block(index).ok_or_else(taken_error)?;
        if !free(&block) || !self.usable(address) {
            return Err(taken_error());
        }
        for own in &mut block.addresses {
            if own.is_ipv4() == address.is_ipv4() {
                *own = address;
            }
        }
        Ok(block)
    }

    fn index_of(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(a) => {
                let pool = self.v4.filter(|p| p.contains(&a))?;
                u32::from(a)
                    .checked_sub(u32::from(pool.network()))?
                    .checked_shr(32 - u32::from(self.block4))
                    .or(Some(0))
            }
            IpAddr::V6(a) => {
                let pool = self.v6.filter(|p| p.contains(&a))?;
                let offset = u128::from(a).checked_sub(u128::from(pool.network()))?;
                u32::try_from(offset >> 64).ok()
            }
        }
    }

    /// Whether an address can be somebody's: not the pool's network or broadcast address, not a block's zero of v6.
    pub fn usable(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(a) => self.v4.is_some_and(|p| {
                p.contains(&a) && (p.prefix_len() >= 31 || (a != p.network() && a != p.broadcast()))
            }),
            IpAddr::V6(a) => self
                .v6
                .is_some_and(|p| p.contains(&a) && a.segments().get(4..) != Some(&[0; 4])),
        }
    }

    /// Whether a prefix lies inside the pools.
    pub fn covers(&self, prefix: IpNet) -> bool {
        match prefix {
            IpNet::V4(p) => self.v4.is_some_and(|pool| pool.contains(&p)),
            IpNet::V6(p) => self.v6.is_some_and(|pool| pool.contains(&p)),
        }
    }
}

/// Refuses a wanted address that is not leased, is nobody's to have, or is in use.
fn check_wanted(
    pools: &Pools,
    leases: &[IpNet],
    used: &BTreeSet<IpAddr>,
    wanted: &[IpAddr],
) -> Result<()> {
    for &address in wanted {
        if !leases.iter().any(|l| l.contains(&address)) {
            let held: Vec<String> = leases.iter().map(ToString::to_string).collect();
            let held = held.join(", ");
            return Err(Error::new(
                Kind::Conflict,
                Code::NotLeased,
                format!("{address} is not leased to this machine, which has [{held}]"),
            )
            .hint(Hint::AddLease));
        }
        if !pools.usable(address) {
            return Err(Error::new(
                Kind::Conflict,
                Code::AddressTaken,
                format!("{address} is a network's own or broadcast address, which nobody can have"),
            ));
        }
        if used.contains(&address) {
            return Err(Error::new(
                Kind::Conflict,
                Code::AddressTaken,
                format!("{address} is in use"),
            ));
        }
    }
    Ok(())
}

/// Addresses of a version 4 lease that a workload may get.
fn hosts4(lease: Ipv4Net) -> impl Iterator<Item = IpAddr> {
    let first = u32::from(lease.network());
    let last = u32::from(lease.broadcast());
    // Blocks have network and broadcast addresses of their own only in people's eyes; theirs are left unused.
    let (from, to) = if lease.prefix_len() >= 31 {
        (first, last)
    } else {
        (first.saturating_add(2), last.saturating_sub(1))
    };
    (from..=to).map(|a| IpAddr::V4(a.into()))
}

/// Addresses of a version 6 lease that a workload may get: the one with host number `same` first, where it has that.
fn hosts6(lease: Ipv6Net, same: Option<u32>) -> impl Iterator<Item = IpAddr> {
    let base = u128::from(lease.network());
    let span = 1u128
        .checked_shl(128 - u32::from(lease.prefix_len()))
        .unwrap_or(u128::MAX)
        .min(1 << 20);
    let first = same.filter(|s| u128::from(*s) < span).map(u128::from);
    let range = if lease.prefix_len() == 128 {
        0..1
    } else {
        2..span
    };
    first
        .into_iter()
        .chain(range)
        .map(move |i| IpAddr::V6(Ipv6Addr::from(base.saturating_add(i))))
}

/// One address per family out of `leases` for a workload, none of them in `used`; v4 and v6 get the same host number
/// where they can. `wanted` has at most one of a family.
///
/// # Errors
/// `E-ADDRESS-TAKEN`, `E-NOT-LEASED` for a wanted one; `E-BLOCK-FULL`.
pub fn free_addresses(
    pools: &Pools,
    leases: &[IpNet],
    used: &BTreeSet<IpAddr>,
    wanted: &[IpAddr],
) -> Result<Vec<IpAddr>> {
    check_wanted(pools, leases, used, wanted)?;
    let free = |a: &IpAddr| pools.usable(*a) && !used.contains(a);
    let mut found: Vec<IpAddr> = wanted.to_vec();
    if !found.iter().any(IpAddr::is_ipv4) {
        let v4 = leases
            .iter()
            .filter_map(|l| if let IpNet::V4(n) = l { Some(*n) } else { None });
        found.extend(v4.flat_map(hosts4).take(1 << 20).find(free));
    }
    if !found.iter().any(IpAddr::is_ipv6) {
        let same = found.iter().find_map(|a| {
            if let IpAddr::V4(a) = a {
                Some(u32::from(*a) & 0xff)
            } else {
                None
            }
        });
        let v6 = leases
            .iter()
            .filter_map(|l| if let IpNet::V6(n) = l { Some(*n) } else { None });
        found.extend(v6.flat_map(|n| hosts6(n, same)).find(free));
    }
    if found.is_empty() {
        return Err(Error::new(
            Kind::Conflict,
            Code::BlockFull,
            "this node's leases have no free address",
        )
        .hint(Hint::AddLease));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_that_is_not_leased_is_told_with_the_leases_that_are() {
        let pools = pools("10.77.0.0/16", 24);
        let leases = ["10.77.2.0/24", "fd00:1:2:2::/64"].map(|l| l.parse().unwrap());
        let wanted = ["10.77.1.9".parse().unwrap()];
        let error = free_addresses(&pools, &leases, &BTreeSet::new(), &wanted).unwrap_err();
        assert_eq!(error.code, Code::NotLeased);
        let told =
            "10.77.1.9 is not leased to this machine, which has [10.77.2.0/24, fd00:1:2:2::/64]";
        assert_eq!(error.message, told);
    }

    #[test]
    fn a_leased_address_that_is_the_networks_is_not_said_to_want_a_lease() {
        let pools = pools("10.77.0.0/16", 24);
        let leases = ["10.77.0.0/24", "10.77.255.0/24", "fd00:1:2:2::/64"];
        let leases = leases.map(|l| l.parse().unwrap());
        for address in ["10.77.0.0", "10.77.255.255", "fd00:1:2:2::"] {
            let wanted = [address.parse().unwrap()];
            let error = free_addresses(&pools, &leases, &BTreeSet::new(), &wanted).unwrap_err();
            assert_eq!((error.code, &error.hint), (Code::AddressTaken, &None));
            assert!(error.message.contains("own or broadcast"), "{error:?}");
        }
    }

    fn pools(v4: &str, block4: u8) -> Pools {
        Pools {
            v4: Some(v4.parse().unwrap()),
            block4,
            v6: Some("fd00:1:2::/48".parse().unwrap()),
        }
    }

    #[test]
    fn default_pool_holds_256_members() {
        let pools = pools("10.77.0.0/16", 24);
        let mut taken = Vec::new();
        for i in 0..256 {
            let block = pools.free_block(&taken, None, |_| true).unwrap();
            if i == 0 {
                assert_eq!(block.addresses[0].to_string(), "10.77.1.1");
                assert_eq!(block.addresses[1].to_string(), "fd00:1:2:1::1");
            }
            taken.extend(block.leases);
        }
        assert_eq!(
            pools.free_block(&taken, None, |_| true).unwrap_err().code,
            Code::PoolFull
        );
    }

    #[test]
    fn a_short_prefix_holds_as_many_members_as_a_pool_may() {
        for prefix in [
            "fd00::/8",
            "fd00::/31",
            "fd00:1::/32",
            "fd00:1::/33",
            "fd00:1:2::/48",
        ] {
            let pools = Pools {
                v4: None,
                block4: 24,
                v6: Some(prefix.parse().unwrap()),
            };
            assert_eq!(pools.blocks(), 65_536, "{prefix}");
            let first = pools.free_block(&[], None, |_| true).unwrap();
            let second = pools.free_block(&first.leases, None, |_| true).unwrap();
            assert_ne!(first, second, "{prefix}");
        }
        let pools = Pools {
            v4: Some("0.0.0.0/0".parse().unwrap()),
            block4: 32,
            v6: None,
        };
        assert_eq!(pools.blocks(), 65_536);
    }

    #[test]
    fn pool_avoids_every_route_of_the_host() {
        let taken = [
            "10.77.3.0/24".parse().unwrap(),
            "10.5.0.0/16".parse().unwrap(),
        ];
        let pool = pick_pool4(&taken, 5).unwrap();
        assert_eq!(pool.to_string(), "10.6.0.0/16");
        assert!(
            pick_pool4(
                &[
                    "10.0.0.0/8".parse().unwrap(),
                    "172.16.0.0/12".parse().unwrap()
                ],
                0
            )
            .is_err()
        );
    }

    #[test]
    fn wanted_address_brings_its_block() {
        let pools = pools("10.42.7.0/24", default_block4(24));
        let block = pools
            .free_block(&[], Some("10.42.7.20".parse().unwrap()), |_| true)
            .unwrap();
        assert_eq!(block.leases[0].to_string(), "10.42.7.16/28");
        assert_eq!(block.addresses[0].to_string(), "10.42.7.20");
        assert!(
            pools
                .free_block(&block.leases, Some("10.42.7.21".parse().unwrap()), |_| true)
                .is_err()
        );
        assert!(
            pools
                .free_block(&[], Some("10.42.8.1".parse().unwrap()), |_| true)
                .is_err()
        );
    }

    proptest! {
        #[test]
        fn overlaps_are_found_as_by_a_scan(
            held in proptest::collection::vec((any::<u16>(), 8u8..=32), 0..30),
            asked in (any::<u16>(), 8u8..=32),
        ) {
            let net = |(bits, len): (u16, u8)| {
                IpNet::V4(Ipv4Net::new((u32::from(bits) << 16 | u32::from(bits)).into(), len).unwrap().trunc())
            };
            let mut prefixes = Prefixes::default();
            held.iter().for_each(|h| prefixes.insert(net(*h), ()));
            let scan = held.iter().any(|h| overlaps(net(*h), net(asked)));
            let found = prefixes.overlapping(net(asked));
            prop_assert_eq!(found.is_some(), scan);
            prop_assert!(found.is_none_or(|(p, ())| overlaps(p, net(asked))));
        }

        #[test]
        fn blocks_never_overlap(len in 8u8..=28, extra in 0u8..=8, members in 1usize..40) {
            let pools = Pools { v4: Ipv4Net::new("10.0.0.0".parse().unwrap(), len).ok(), block4: (len + extra).min(32), v6: None };
            let mut taken: Vec<IpNet> = Vec::new();
            for _ in 0..members {
                let Ok(block) = pools.free_block(&taken, None, |_| true) else { break };
                prop_assert!(block.leases.iter().all(|l| !taken.iter().any(|t| overlaps(*l, *t))));
                prop_assert!(block.leases.iter().all(|l| pools.covers(*l)));
                prop_assert!(block.addresses.iter().all(|a| pools.usable(*a)));
                taken.extend(block.leases);
            }
        }

        #[test]
        fn workload_addresses_are_leased_and_distinct(count in 1usize..300) {
            let pools = pools("10.77.0.0/16", 24);
            let block = pools.free_block(&[], None, |_| true).unwrap();
            let mut used: BTreeSet<IpAddr> = block.addresses.iter().copied().collect();
            for _ in 0..count {
                let Ok(found) = free_addresses(&pools, &block.leases, &used, &[]) else { break };
                for address in found {
                    prop_assert!(block.leases.iter().any(|l| l.contains(&address)));
                    prop_assert!(used.insert(address));
                }
            }
        }
    }
}
