//! Families of the search on the local networks.

use std::fmt;

use super::{Families, Labels};
use crate::service::lan::LanStatus;

pub(super) fn lan(out: &mut Families<'_>, status: &LanStatus) -> fmt::Result {
    let by =
        |name, value: &str, count| -> (Labels, u64) { (vec![(name, value.to_owned())], count) };
    let counts = &status.counts;
    let messages = [
        ("asked", counts.asked),
        ("told", counts.said),
        ("heard", counts.heard),
    ];
    out.counter(
        "byway_lan_messages",
        "Messages of the search on the local networks: questions and answers sent, and those of others that were looked at",
        messages.map(|(what, count)| by("what", what, count)),
    )?;
    out.counter(
        "byway_lan_dropped",
        "Messages of others on the local networks that were not looked at, or not believed, by reason",
        status.drops().map(|(why, count)| by("reason", why, count)),
    )
}
