//! What the table counts, and how a listing of it is read.
//!
//! The schema types parse neither maps with a concatenated value nor some of our rules, and one object they cannot
//! parse fails the whole listing: so our own table's JSON is read field by field, and what is not understood counts as
//! altered.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::atom::{Atom, BY_LINK, CLOSED, FAMILIES, MapKey, Tuple, family_word};
use super::elements::Elements;
use super::ruleset::DROPS;
use crate::model::host::{Family, Proto};
use crate::model::mac;

/// The numbers of the protocols that have ports (IANA).
const TCP: u16 = 6;
const UDP: u16 = 17;

/// The set of hardware addresses that virtual machines use and that are not theirs, each with its TAP. Its size bounds it, and
/// an address is in it for two minutes after the last packet.
pub(super) const STRANGERS: &str = "strangers";

/// A counter of nftables.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets (a segment of several frames counts as one).
    pub packets: u64,
    /// Bytes of IP packets, their headers among them.
    pub bytes: u64,
}

/// All counts of our table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Counts of the elements, by set and key.
    pub sets: BTreeMap<String, BTreeMap<Tuple, Count>>,
    /// Dropped packets, by the name of the counter.
    pub drops: BTreeMap<String, Count>,
    /// Hardware addresses that are not the virtual machine's, by its TAP.
    pub strangers: BTreeMap<String, BTreeSet<String>>,
}

/// What has passed through one port map.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MapCount {
    /// How many connections or flows were begun.
    pub connections: u64,
    /// Bytes that clients sent to the workload.
    pub rx_bytes: u64,
    /// Bytes that the workload sent back to clients.
    pub tx_bytes: u64,
}

impl std::ops::AddAssign for MapCount {
    fn add_assign(&mut self, other: Self) {
        self.connections = self.connections.saturating_add(other.connections);
        self.rx_bytes = self.rx_bytes.saturating_add(other.rx_bytes);
        self.tx_bytes = self.tx_bytes.saturating_add(other.tx_bytes);
    }
}

impl Counters {
    /// The counts of port maps, each put together from the sets that have them.
    pub fn maps(&self) -> BTreeMap<MapKey, MapCount> {
        let mut maps: BTreeMap<MapKey, MapCount> = BTreeMap::new();
        for (set, elements) in &self.sets {
            for (key, count) in elements {
                let Some(key) = MapKey::parse(set, key) else {
                    continue;
                };
                let map = maps.entry(key).or_default();
                match set.split('_').next() {
                    Some("conn") => map.connections = count.packets,
                    Some("rx") => map.rx_bytes = count.bytes,
                    Some("tx") => map.tx_bytes = count.bytes,
                    _ => {}
                }
            }
        }
        maps
    }

    /// Packets that were refused of what was asked of the machine itself, by link.
    pub fn closed(&self) -> BTreeMap<String, u64> {
        let counts = self.sets.get(CLOSED).into_iter().flatten();
        counts
            .filter_map(|(key, count)| match key.as_slice() {
                [Atom::Link(link)] => Some((link.clone(), count.packets)),
                _ => None,
            })
            .collect()
    }

    /// Takes from `older` what it saw and `self` did not (the table was flushed between the two).
    pub fn keep(&mut self, older: &Counters) {
        fn larger(slot: &mut Count, older: Count) {
            if older.packets > slot.packets {
                *slot = older;
            }
        }
        for (set, elements) in &older.sets {
            let mine = self.sets.entry(set.clone()).or_default();
            elements
                .iter()
                .for_each(|(key, count)| larger(mine.entry(key.clone()).or_default(), *count));
        }
        older
            .drops
            .iter()
            .for_each(|(name, count)| larger(self.drops.entry(name.clone()).or_default(), *count));
    }

    /// Forgets elements that were deleted: should one come back, it starts at zero.
    pub fn forget(&mut self, deleted: &[(String, Vec<Tuple>)]) {
        for (set, keys) in deleted {
            if let Some(counts) = self.sets.get_mut(set) {
                for key in keys {
                    counts.remove(key);
                }
            }
        }
    }

    /// Forgets elements that `elements` no longer has.
    pub fn retain(&mut self, elements: &Elements) {
        for (set, counts) in &mut self.sets {
            counts.retain(|key, _| elements.has(set, key));
        }
    }
}

/// Our table, as the kernel lists it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Listing {
    /// The elements of every set and map.
    pub elements: Elements,
    /// The counts of those elements, and of what was dropped.
    pub counters: Counters,
    /// Chains, rules and the heads of sets, without handles and counts, in the order listed.
    pub skeleton: Vec<Value>,
}

impl Listing {
    /// Reads the output of `nft -j list table`; none where it is not such.
    pub fn parse(json: &[u8]) -> Option<Self> {
        let document: Value = serde_json::from_slice(json).ok()?;
        let mut listing = Listing::default();
        for object in document.get("nftables")?.as_array()? {
            let (kind, body) = object.as_object()?.iter().next()?;
            if kind != "metainfo" {
                listing.object(kind, body.as_object()?.clone());
            }
        }
        Some(listing)
    }

    fn object(&mut self, kind: &str, mut body: serde_json::Map<String, Value>) {
        body.remove("handle");
        let name = body
            .get("name")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        match kind {
            "set" | "map" => {
                for element in body
                    .remove("elem")
                    .as_ref()
                    .and_then(Value::as_array)
                    .into_iter()
                    .flatten()
                {
                    if name == STRANGERS {
                        self.stranger(element);
                    } else if self.element(&name, element).is_none() {
                        // Not one of ours by its shape: makes the listing differ from what was written.
                        self.skeleton.push(element.clone());
                    }
                }
            }
            "counter" => {
                let count = count(&Value::Object(body.clone()));
                body.remove("packets");
                body.remove("bytes");
                if DROPS.contains(&name.as_str()) {
                    self.counters.drops.insert(name, count);
                }
            }
            _ => {}
        }
        self.skeleton.push(serde_json::json!({ kind: body }));
    }

    /// What packets entered is not what was written: it is read apart from the elements.
    fn stranger(&mut self, element: &Value) {
        let key = element.get("elem").and_then(|elem| elem.get("val"));
        let parts = key.unwrap_or(element).get("concat");
        if let Some([Value::String(link), Value::String(mac)]) =
            parts.and_then(Value::as_array).map(Vec::as_slice)
        {
            let all = self.counters.strangers.entry(link.clone()).or_default();
            all.insert(mac.clone());
        }
    }

    fn element(&mut self, set: &str, element: &Value) -> Option<()> {
        let (key, value) = match element.as_array().map(Vec::as_slice) {
            Some([key, value]) => (key, Some(tuple(None, value)?)),
            Some(_) => return None,
            None => (element, None),
        };
        let (key, counted) = match key.get("elem") {
            Some(elem) => (elem.get("val")?, elem.get("counter")),
            None => (key, None),
        };
        let key = tuple(Some(set), key)?;
        if let Some(counted) = counted {
            self.counters
                .sets
                .entry(set.to_owned())
                .or_default()
                .insert(key.clone(), count(counted));
        }
        self.elements.insert(set, key, value);
        Some(())
    }
}

fn count(body: &Value) -> Count {
    let field = |name| body.get(name).and_then(Value::as_u64).unwrap_or_default();
    Count {
        packets: field("packets"),
        bytes: field("bytes"),
    }
}

/// Reads a key of `set`, or a value.
fn tuple(set: Option<&str>, value: &Value) -> Option<Tuple> {
    let parts = match value.get("concat").and_then(Value::as_array) {
        Some(parts) => parts.as_slice(),
        None => std::slice::from_ref(value),
    };
    let mut tuple: Tuple = parts.iter().map(atom).collect::<Option<_>>()?;
    name_protocols(&mut tuple);
    if let (Some(set), Some(first)) = (set, tuple.first_mut())
        && let Some(Value::String(word)) = parts.first()
    {
        // Words mean what the set says: a link may be called `tcp`.
        if set == FAMILIES {
            *first = Atom::Family(
                [Family::V4, Family::V6]
                    .into_iter()
                    .find(|f| family_word(*f) == word)?,
            );
        } else if BY_LINK.contains(&set) {
            *first = Atom::Link(word.clone());
        }
    }
    Some(tuple)
}

/// Where the machine has no `/etc/protocols`, nft lists a protocol by its number. It stands before the ports, which never
/// follow each other.
fn name_protocols(tuple: &mut [Atom]) {
    let mut before: Option<&mut Atom> = None;
    for atom in tuple {
        if let (Some(protocol), Atom::Port(_) | Atom::Ports(..)) = (before.take(), &*atom) {
            match protocol {
                Atom::Port(TCP) => *protocol = Atom::Proto(Proto::Tcp),
                Atom::Port(UDP) => *protocol = Atom::Proto(Proto::Udp),
                _ => {}
            }
        }
        before = Some(atom);
    }
}

fn atom(value: &Value) -> Option<Atom> {
    if let Some(prefix) = value.get("prefix") {
        let addr: IpAddr = prefix.get("addr")?.as_str()?.parse().ok()?;
        let len = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return IpNet::new(addr, len).ok().map(Atom::net);
    }
    if let Some([first, last]) = value
        .get("range")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
    {
        let port = |value: &Value| value.as_u64().and_then(|n| u16::try_from(n).ok());
        return Some(Atom::ports(port(first)?, port(last)?));
    }
    match value {
        Value::Number(port) => u16::try_from(port.as_u64()?).ok().map(Atom::Port),
        Value::String(text) => Some(match text.as_str() {
            "tcp" => Atom::Proto(Proto::Tcp),
            "udp" => Atom::Proto(Proto::Udp),
            text => match (text.parse(), mac::unicast(text)) {
                (Ok(addr), _) => Atom::Addr(addr),
                (_, Some(mac)) => Atom::Mac(mac),
                _ => Atom::Link(text.to_owned()),
            },
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn listings_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Listing::parse(&bytes);
        }

        #[test]
        fn odd_elements_never_panic(text in r#"\{"nftables":\[\{"(set|map|rule|counter)":\{"name":"any4","elem":\[(\{"(elem|prefix|concat|val)":[\[\]{},0-9"a]{0,12}\}|1|"x"|\[1,2\])\]\}\}\]\}"#) {
            let _ = Listing::parse(text.as_bytes());
        }
    }

    #[test]
    fn the_seed_of_the_fuzzer_is_a_listing() {
        let json = include_bytes!("../../../tests/fuzz/seeds/nft/table.json");
        super::super::fuzz(json);
        let listing = Listing::parse(json).unwrap();
        assert!(!listing.elements.targets().is_empty() && !listing.skeleton.is_empty());
        assert!(!listing.counters.maps().is_empty());
    }

    #[test]
    fn protocols_are_read_by_name_and_by_number() {
        let listing = |tcp: &str, udp: &str| {
            let json = format!(
                r#"{{"nftables":[
                {{"map":{{"name":"any4","elem":[[{{"concat":[{tcp},6]}},{{"concat":["10.7.1.2",17]}}]]}}}},
                {{"map":{{"name":"exact4","elem":[[{{"concat":["192.0.2.1",{udp},17]}},{{"concat":["10.7.1.2",6]}}]]}}}},
                {{"set":{{"name":"open","elem":[{{"concat":["bw-lab",{udp},{{"range":[6,17]}}]}},{{"concat":["bw-lab",{tcp},22]}}]}}}},
                {{"set":{{"name":"guarded_any4","elem":[{{"concat":[{tcp},6]}}]}}}},
                {{"set":{{"name":"allowed_any4","elem":[{{"concat":[{udp},17,"192.0.2.0"]}}]}}}}]}}"#
            );
            Listing::parse(json.as_bytes()).unwrap().elements
        };
        let named = listing("\"tcp\"", "\"udp\"");
        assert!(named.same(&listing("6", "17")));
        assert!(!named.same(&listing("17", "6")), "they are told apart");
    }

    #[test]
    fn elements_and_counts_are_read_back() {
        let json = br#"{"nftables":[{"metainfo":{}},
            {"map":{"family":"inet","name":"any6","handle":4,"elem":[[{"concat":["tcp",80]},{"concat":["fd00::2",8080]}]]}},
            {"set":{"name":"rx_exact4","handle":5,"elem":[{"elem":{"val":{"concat":["192.0.2.1","udp",53]},"counter":{"packets":3,"bytes":90}}}]}},
            {"set":{"name":"conn_exact4","handle":5,"elem":[{"elem":{"val":{"concat":["192.0.2.1","udp",53]},"counter":{"packets":2,"bytes":60}}}]}},
            {"set":{"name":"strangers","handle":6,"size":64,"elem":[{"elem":{"val":{"concat":["bwv-vm","02:00:00:00:00:99"]},"timeout":120,"expires":7}},
                {"concat":["bwv-vm","33:33:00:00:00:01"]}]}},
            {"counter":{"name":"filtered","handle":9,"packets":7,"bytes":420}}]}"#;
        let listing = Listing::parse(json).unwrap();
        let targets = listing.elements.targets();
        assert_eq!(
            targets.into_iter().next().unwrap().1,
            ("fd00::2".parse().unwrap(), 8080)
        );
        let key = MapKey {
            proto: Proto::Udp,
            listen: "192.0.2.1".parse().unwrap(),
            port: 53,
        };
        assert_eq!(
            listing.counters.maps()[&key],
            MapCount {
                connections: 2,
                rx_bytes: 90,
                tx_bytes: 0
            }
        );
        assert_eq!(listing.counters.drops["filtered"].packets, 7);
        let strange = listing.counters.strangers["bwv-vm"].iter();
        let strange: Vec<&str> = strange.map(String::as_str).collect();
        assert_eq!(strange, ["02:00:00:00:00:99", "33:33:00:00:00:01"]);
        let heads = format!("{:?}", listing.skeleton);
        assert!(
            heads.contains("strangers") && !heads.contains("02:00:00"),
            "{heads}"
        );
        assert!(!format!("{:?}", listing.skeleton).contains("handle"));
    }
}
