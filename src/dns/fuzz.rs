//! The way from bytes to bytes without sockets, over a zone with every kind of record. Built by cargo-fuzz, and with the
//! tests so that it keeps up with what it is made of.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use hickory_server::net::xfer::Protocol;

use super::catalog::Catalog;
use super::handler::{Handler, answer};
use super::listen::Shared;
use crate::model::id::SubnetId;
use crate::model::routes::RouteTable;
use crate::model::view::{SubnetView, View};
use crate::model::zone::{Entry, RecordData, Zone};

/// One subnet that is served.
pub struct Fixture(Arc<Handler>);

impl Default for Fixture {
    fn default() -> Self {
        Self::new()
    }
}

impl Fixture {
    /// Names of every kind: aliases in a ring and to the outside, too many addresses for a datagram, names below names.
    #[expect(clippy::unwrap_used, reason = "constants")]
    pub fn new() -> Fixture {
        let own: IpAddr = "10.42.7.1".parse().unwrap();
        let entry = |data| Entry { ttl: 60, data };
        let alias = |target: &str| vec![entry(RecordData::Cname(target.to_owned()))];
        let srv = RecordData::Srv {
            priority: 1,
            weight: 2,
            port: 80,
            target: "db.lab.internal".to_owned(),
        };
        let many = (0..200u8)
            .map(|n| entry(RecordData::Address([10, 42, 9, n].into())))
            .collect();
        let names: [(&str, Vec<Entry>); 6] = [
            (
                "db",
                vec![
                    entry(RecordData::Address(own)),
                    entry(RecordData::Txt("x".repeat(255))),
                ],
            ),
            ("a", alias("b.lab.internal")),
            ("b", alias("a.lab.internal")),
            ("out", alias("example.org")),
            ("_http._tcp", vec![entry(srv)]),
            ("big", many),
        ];
        let prefixes = vec![
            "10.42.0.0/16".parse().unwrap(),
            "fd00:42::/48".parse().unwrap(),
        ];
        let mut zone = Zone::new("lab.internal".to_owned(), prefixes);
        names
            .into_iter()
            .for_each(|(name, entries)| zone.set(name, entries.into()));
        zone.point(own, "db.lab.internal".into());
        let id = SubnetId([4; 16]);
        let subnet = SubnetView {
            id,
            name: "lab".parse().unwrap(),
            interface: "bw-lab".to_owned(),
            cidr4: None,
            cidr6: None,
            addresses: vec![own],
            mtu: 1280,
            routes: Arc::new(RouteTable::default()),
            here: Default::default(),
            members: Default::default(),
            hosts: Default::default(),
            data_keys: Default::default(),
            zone: Arc::new(zone),
        };
        let subnets = BTreeMap::from([(id, Arc::new(subnet))]);
        let view = View {
            generation: 1,
            subnets,
            ..View::default()
        };
        let served = Catalog::default().update(&view, true).remove(&id).unwrap();
        Fixture(Arc::new(Handler::new(
            Arc::new(ArcSwap::from_pointee(served)),
            Arc::new(Shared::new()),
        )))
    }

    /// What is sent back for `raw`, from this machine (`local`) or from another member.
    pub fn answer(&self, raw: &[u8], local: bool, tcp: bool) -> Option<Vec<u8>> {
        let source = SocketAddr::from(([10, 42, if local { 7 } else { 99 }, 1], 5300));
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        futures::executor::block_on(answer(Arc::clone(&self.0), raw.to_vec(), source, protocol))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fuzzers_server_answers() {
        let fixture = Fixture::new();
        // ID 7, one question: db.lab.internal A IN.
        let question = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x02db\x03lab\x08internal\0\0\x01\0\x01";
        let answer = fixture.answer(question, true, false).unwrap();
        assert_eq!(answer[..2], question[..2]);
        assert!(answer.ends_with(&[10, 42, 7, 1]), "{answer:?}");
        assert_eq!(fixture.answer(b"", true, false), None);
    }
}
