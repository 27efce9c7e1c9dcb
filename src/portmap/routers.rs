//! Every router that a default route leads over, each with a machine of its own: the port that one opens says nothing of
//! another, and one that is slow or silent holds no other up.
#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]

use std::time::Instant;

use super::records::{MAX_AWAY, MAX_RECORDS};
use super::{Failure, Gateway, Granted, Machine, Order, Record, Situation, Status};

/// Routers that are asked at most in each family, those first that the kernel prefers.
pub const MAX_ROUTERS: usize = 4;

/// Asks several routers for ports.
#[derive(Debug, Default)]
pub struct Routers {
    machines: Vec<Machine>,
    /// What routers may have open that no default route leads over now.
    away: Vec<Record>,
}

impl Routers {
    /// Begins with what was saved before.
    pub fn new(records: Vec<Record>) -> Routers {
        let mut routers = Routers::default();
        routers.put_away(records);
        routers
    }

    /// Takes what is to be mapped at each router now, in place of what was; of one router the first counts. `situations` is as
    /// long as there are routers, at most [`MAX_ROUTERS`] of a family, and one without a router where IPv4 has none.
    pub fn set(&mut self, now: Instant, situations: Vec<Situation>) {
        let mut before = std::mem::take(&mut self.machines);
        let is_there = |gateway: Option<Gateway>| situations.iter().any(|s| s.gateway == gateway);
        before.retain(|machine| {
            let stays = is_there(machine.gateway());
            if !stays {
                self.away.extend(machine.records());
            }
            stays
        });
        for situation in situations {
            let gateway = situation.gateway;
            if self.machines.iter().any(|m| m.gateway() == gateway) {
                continue;
            }
            let known = before.iter().position(|m| m.gateway() == gateway);
            let mut machine = match known {
                Some(at) => before.swap_remove(at),
                None => {
                    let back = |record: &mut Record| Some(record.gateway) == gateway;
                    Machine::new(self.away.extract_if(.., back).collect())
                }
            };
            machine.set(now, situation);
            self.machines.push(machine);
        }
        let away = std::mem::take(&mut self.away);
        self.put_away(away);
    }

    /// Keeps those that last the longest.
    fn put_away(&mut self, records: Vec<Record>) {
        self.away = records;
        self.away
            .sort_by_key(|record| std::cmp::Reverse(record.until));
        self.away.truncate(MAX_AWAY);
    }

    /// A link, an address or a route has changed.
    pub fn changed(&mut self, now: Instant) {
        for machine in &mut self.machines {
            machine.changed(now);
        }
    }

    /// The next question to each router that one is due for; they may be asked beside one another. As of
    /// [`Machine::poll`].
    pub fn poll(
        &mut self,
        now: Instant,
        unix: u64,
        random: &mut dyn FnMut() -> Option<u32>,
    ) -> Vec<Order> {
        self.away.retain(|record| record.until > unix);
        let machines = self.machines.iter_mut();
        machines
            .filter_map(|machine| machine.poll(now, unix, random))
            .collect()
    }

    /// What came of one of the orders that were given last.
    pub fn done(
        &mut self,
        now: Instant,
        unix: u64,
        order: &Order,
        outcome: Result<Granted, Failure>,
    ) {
        if let Some(machine) = self.of(order) {
            machine.done(now, unix, order, outcome);
        }
    }

    /// The order could not be saved, so it was not carried out.
    pub fn unsaved(&mut self, now: Instant, order: &Order) {
        if let Some(machine) = self.of(order) {
            machine.unsaved(now, order);
        }
    }

    fn of(&mut self, order: &Order) -> Option<&mut Machine> {
        let gateway = Some(order.record().gateway);
        let mut machines = self.machines.iter_mut();
        machines.find(|machine| machine.gateway() == gateway)
    }

    /// When there is something to do again, as far as is known.
    pub fn deadline(&self) -> Option<Instant> {
        self.machines.iter().filter_map(Machine::deadline).min()
    }

    /// What is to be saved. It is bounded: every router that is asked has its share, and so have those that are away.
    pub fn records(&self) -> Vec<Record> {
        let of_machines = self.machines.iter().flat_map(Machine::records);
        of_machines.chain(self.away.iter().copied()).collect()
    }

    /// What the routers that are there may have open for this machine: it is removed at the end.
    pub fn at_these_routers(&self) -> Vec<Record> {
        let machines = self.machines.iter();
        machines.flat_map(Machine::at_this_router).collect()
    }

    /// A record whose mapping is removed is kept no more.
    pub fn forget_record(&mut self, record: &Record) {
        for machine in &mut self.machines {
            machine.forget_record(record);
        }
    }

    /// How the ports of each router stand, in the order in which they were named.
    pub fn status(&self) -> Vec<Status> {
        self.machines.iter().map(Machine::status).collect()
    }
}

/// Records in the file at most: those of every router that is asked, and of those that are away.
pub(super) const MAX_SAVED: usize = 2 * MAX_ROUTERS * MAX_RECORDS + MAX_AWAY;

#[cfg(test)]
mod tests {
    use super::super::{Port, Protocol, Transport, Trouble};
    use super::*;
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    const UNIX: u64 = 1_700_000_000;
    /// Each number once, so that no nonce is another's.
    static NEXT: AtomicU32 = AtomicU32::new(1);

    fn random() -> Option<u32> {
        Some(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    fn situation(router: u8, local: &str) -> Situation {
        let address = match local.contains(':') {
            true => format!("fe80::{router:x}"),
            false => format!("192.168.{router}.1"),
        };
        Situation {
            is_enabled: true,
            ports: vec![Port {
                transport: Transport::Udp,
                number: 4100,
            }],
            gateway: Some(Gateway {
                address: address.parse().unwrap(),
                local: local.parse().unwrap(),
            }),
        }
    }

    fn two() -> Vec<Situation> {
        vec![situation(1, "192.168.1.7"), situation(2, "192.168.2.7")]
    }

    /// Answers every question, each router in its own way, until none is due.
    fn settle(
        routers: &mut Routers,
        now: Instant,
        answer: impl Fn(&Record) -> Result<Granted, Failure>,
    ) -> Vec<Order> {
        let mut all = Vec::new();
        for round in 0.. {
            assert!(round < 50, "it asks for ever: {all:?}");
            let orders = routers.poll(now, UNIX, &mut random);
            if orders.is_empty() {
                return all;
            }
            for order in orders {
                let outcome = match &order {
                    Order::Map { record, .. } => answer(record),
                    Order::Remove(record) => opens(record),
                };
                routers.done(now, UNIX, &order, outcome);
                all.push(order);
            }
        }
        all
    }

    /// Router N opens the port at 203.0.113.N, or lets it in at our own address.
    fn opens(record: &Record) -> Result<Granted, Failure> {
        let ip = match record.gateway.address {
            std::net::IpAddr::V4(ip) => [203, 0, 113, ip.octets()[2]].into(),
            std::net::IpAddr::V6(_) => record.gateway.local,
        };
        Ok(Granted {
            external: SocketAddr::new(ip, record.external),
            lease: 7200,
            epoch: None,
        })
    }

    fn reached(routers: &Routers) -> Vec<String> {
        let status = routers.status();
        let all = status.iter().flat_map(|s| s.reached(Transport::Udp));
        all.map(|at| at.to_string()).collect()
    }

    #[test]
    fn every_router_opens_its_port_and_one_that_is_silent_holds_none_up() {
        let (mut routers, now) = (Routers::default(), Instant::now());
        routers.set(now, two());
        let first = routers.poll(now, UNIX, &mut random);
        let asked: Vec<_> = first.iter().map(|o| o.record().gateway.address).collect();
        assert_eq!(asked.len(), 2, "beside one another: {asked:?}");
        for order in &first {
            routers.done(now, UNIX, order, Err(Failure::Silent));
        }
        settle(&mut routers, now, |record| match record.gateway.address {
            a if a.to_string() == "192.168.1.1" => Err(Failure::Silent),
            _ => opens(record),
        });
        assert_eq!(reached(&routers), ["203.0.113.2:4100"]);
        let troubles: Vec<_> = routers.status().iter().map(|s| s.trouble).collect();
        assert_eq!(troubles, [Some(Trouble::Silent), None]);
    }

    #[test]
    fn a_router_that_goes_keeps_its_record_until_it_is_back_and_the_other_one_its_port() {
        let (mut routers, now) = (Routers::default(), Instant::now());
        routers.set(now, two());
        settle(&mut routers, now, opens);
        let open = routers.records();
        assert_eq!(reached(&routers), ["203.0.113.1:4100", "203.0.113.2:4100"]);
        routers.set(now, vec![situation(2, "192.168.2.7")]);
        assert_eq!(settle(&mut routers, now, opens), [], "nothing to ask");
        assert_eq!(reached(&routers), ["203.0.113.2:4100"]);
        assert_eq!(routers.records().len(), 2, "{open:?}");
        assert_eq!(routers.at_these_routers().len(), 1);
        // In another order, and back: by the same nonce as before.
        routers.set(now, two().into_iter().rev().collect());
        let asked = settle(&mut routers, now, opens);
        let [order] = asked.as_slice() else {
            panic!("{asked:?}");
        };
        assert!(
            open.iter()
                .any(|record| record.nonce == order.record().nonce)
        );
        assert_eq!(reached(&routers), ["203.0.113.2:4100", "203.0.113.1:4100"]);
        // Switched off: each is asked to close what it opened.
        let off = |s: Situation| Situation {
            is_enabled: false,
            ..s
        };
        routers.set(now, two().into_iter().map(off).collect());
        assert_eq!(settle(&mut routers, now, opens).len(), 2);
        assert_eq!(routers.records(), []);
    }

    #[test]
    fn a_pinhole_is_asked_for_by_pcp_and_upnp_at_a_public_address_and_is_no_further_place_to_look()
    {
        let (mut routers, now) = (Routers::default(), Instant::now());
        routers.set(now, vec![situation(1, "2001:db8::7")]);
        let asked = settle(&mut routers, now, |record| match record.protocol {
            Protocol::Upnp => opens(record),
            _ => Err(Failure::Silent),
        });
        let protocols: Vec<_> = asked.iter().map(|order| order.record().protocol).collect();
        assert_eq!(protocols, [Protocol::Pcp, Protocol::Upnp]);
        let [status] = routers.status().try_into().unwrap();
        assert_eq!(status.mappings.len(), 1);
        assert_eq!(status.trouble, None);
        assert_eq!(status.reached(Transport::Udp).count(), 0);
        assert!(
            routers.deadline().unwrap() <= now + Duration::from_secs(900),
            "renewed"
        );
        // An address of a site has nothing to gain.
        routers.set(now, vec![situation(1, "fd00::7")]);
        assert_eq!(settle(&mut routers, now, opens), []);
    }

    #[test]
    fn one_router_is_asked_once_and_records_of_those_that_are_away_are_bounded() {
        let (mut routers, now) = (Routers::default(), Instant::now());
        routers.set(
            now,
            vec![situation(1, "192.168.1.7"), situation(1, "192.168.1.7")],
        );
        assert_eq!(settle(&mut routers, now, opens).len(), 1);
        for n in 0..60 {
            routers.set(now, vec![situation(n, &format!("192.168.{n}.7"))]);
            settle(&mut routers, now, opens);
        }
        assert_eq!(routers.records().len(), MAX_AWAY + 1);
        assert!(routers.records().len() <= MAX_SAVED);
        let over = routers.poll(now, UNIX + 7300, &mut random);
        assert_eq!(over, [], "nobody asks for more");
        assert_eq!(routers.records(), [], "what has ended is forgotten");
    }
}
