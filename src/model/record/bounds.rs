//! Bounds that hold for every record, whoever signed it.

use std::collections::BTreeSet;

use super::{Announcement, Body, Grant, Head, RecordError, Registration, SHORT_LIFE, Term};
use crate::model::id::{Name, PeerId};
use crate::model::zone::{MAX_NAME, MAX_SET, MAX_TTL, RecordData};

/// How many bytes a record taken from a peer may have.
pub const MAX_RECORD: usize = 128 * 1024;
/// Workloads and names one member may publish in a subnet.
pub const MAX_ENTRIES: usize = 2048;
/// How many leases one grant may have.
pub const MAX_LEASES: usize = 1024;
/// How many admins a subnet may have at once.
pub const MAX_SEATS: usize = 64;
/// Runs of blocks in all parts of one head together: a head has less than 8 KiB.
pub const MAX_RUNS: usize = 256;
/// Greatest generation that an admin may sign: the owner can always go above it.
pub const MAX_ADMIN_GENERATION: u32 = 1 << 24;
/// How many names one issuer may register for one member.
pub const MAX_REGISTERED: usize = 256;
/// How many bytes the body of one registration may have.
pub const MAX_REGISTRATION: usize = 64 * 1024;
/// How many bytes the name of a slot may have.
pub const MAX_SLOT: usize = 64;
/// How many bytes the data of an item may have.
pub const MAX_ITEM: usize = 4096;

/// Bounds that hold for every record, whoever signed it. `size` is that of the body's canonical bytes.
pub(in crate::model) fn check(body: &Body, size: usize) -> Result<(), RecordError> {
    let (kind, fits) = match body {
        Body::Grant(g) => ("grant", grant_fits(g)),
        Body::Head(h) => ("head", head_fits(h)),
        Body::Announcement(d) => ("announcement", announcement_fits(d)),
        Body::Revocation(r) => ("revocation", r.generation > 0),
        Body::Registration(r) => ("registration", registration_fits(r, size)),
        Body::Item(i) => ("item", i.slot.len() <= MAX_SLOT && i.data.len() <= MAX_ITEM),
    };
    if fits {
        Ok(())
    } else {
        Err(RecordError::Nonsense(kind))
    }
}

fn grant_fits(g: &Grant) -> bool {
    g.generation > 0
        && g.seal_key != g.data_key
        && g.leases.len() <= MAX_LEASES
        && g.addresses.len() <= 8
        && g.not_before < g.not_after
        && (g.term == Term::Full || g.not_after.saturating_sub(g.not_before) <= SHORT_LIFE)
        && g.labels.len() <= 64
        && g.leases.iter().all(|p| p.trunc() == *p)
        && g.addresses
            .iter()
            .all(|a| g.leases.iter().any(|p| p.contains(a)))
        && g.labels
            .iter()
            .all(|(k, v)| k.len() <= 63 && v.len() <= 255 && !has_control(k) && !has_control(v))
}

fn head_fits(h: &Head) -> bool {
    let runs: usize = h.seats.iter().map(|s| s.part.len()).sum();
    let admins: BTreeSet<PeerId> = h.seats.iter().map(|s| s.admin).collect();
    h.number > 0
        && h.seats.len() <= MAX_SEATS
        && admins.len() == h.seats.len()
        && runs <= MAX_RUNS
        && h.seats.iter().all(|s| (1..=h.number).contains(&s.since))
        && h.seats
            .iter()
            .flat_map(|s| &s.part)
            .all(|b| b.count > 0 && b.first.checked_add(b.count).is_some())
}

fn announcement_fits(d: &Announcement) -> bool {
    let says = d
        .endpoints
        .len()
        .saturating_add(d.workloads.len())
        .saturating_add(d.names.len());
    (d.left.is_none() || says == 0)
        && d.endpoints.len() <= 32
        && d.endpoints
            .iter()
            .all(|e| e.len() <= 256 && !has_control(e))
        && d.workloads.len().saturating_add(d.names.len()) <= MAX_ENTRIES
        && d.workloads.iter().all(|w| w.addresses.len() <= 8)
        && d.names
            .iter()
            .all(|n| is_record_name(&n.name) && n.ttl <= MAX_TTL && data_fits(&n.data))
}

fn registration_fits(r: &Registration, size: usize) -> bool {
    r.names.len() <= MAX_REGISTERED
        && r.released.len() <= MAX_REGISTERED
        && r.names.iter().chain(r.released.keys()).all(|n| is_record_name(n))
        // One byte says what kind of body it is.
        && size <= MAX_REGISTRATION.saturating_add(1)
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// A name inside a zone: labels of a-z, 0-9, `-` and a leading `_` (RFC 2782), dots between, lower case. The first may be `*`
/// for every name below the rest that does not exist (RFC 4592).
pub fn is_record_name(name: &str) -> bool {
    name.len() <= MAX_NAME && is_exact_name(name.strip_prefix("*.").unwrap_or(name))
}

/// The same for what stands for itself alone: what an alias or a service leads to.
fn is_exact_name(name: &str) -> bool {
    name.len() <= MAX_NAME
        && name.split('.').all(|label| {
            label
                .strip_prefix('_')
                .unwrap_or(label)
                .parse::<Name>()
                .is_ok()
        })
        && !name.bytes().any(|b| b.is_ascii_uppercase())
}

/// Whether an answer can be put into a DNS message.
pub fn data_fits(data: &RecordData) -> bool {
    match data {
        RecordData::Address(address) => crate::model::heard::may_name(*address),
        RecordData::Txt(_) => data.size() <= MAX_SET,
        RecordData::Cname(name) | RecordData::Srv { target: name, .. } => is_exact_name(name),
    }
}
