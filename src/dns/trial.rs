//! The name by which this machine tries whether its own resolver asks here.
//!
//! It is random, lies below a zone of ours and is answered to this machine alone, with addresses that nobody else would give.

use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{Name as DnsName, RData, Record, RecordType};
use hickory_server::server::Request;

use super::question::{Asker, Reply, Served};

/// A name that is tried, with what is answered.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) name: DnsName,
    pub(super) addresses: Vec<IpAddr>,
}

impl Trial {
    /// The answer where this machine asks for the name; it may not be kept.
    pub(super) fn reply(&self, served: &Served, request: &Request) -> Option<Reply> {
        let [query] = request.queries.queries() else {
            return None;
        };
        let query = query.original();
        let mut name = query.name().clone();
        name.set_fqdn(true);
        if name != self.name || served.asker(request.src().ip()) != Asker::Machine {
            return None;
        }
        let data = |address: &IpAddr| match address {
            IpAddr::V4(a) if query.query_type() == RecordType::A => Some(RData::A(A(*a))),
            IpAddr::V6(a) if query.query_type() == RecordType::AAAA => Some(RData::AAAA(AAAA(*a))),
            _ => None,
        };
        let data = self.addresses.iter().filter_map(data);
        let records = data.map(|data| Record::from_rdata(name.clone(), 0, data));
        Some(Reply::of_trial(request, records.collect()))
    }
}
