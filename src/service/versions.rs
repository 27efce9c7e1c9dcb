//! Members whose program has no version in common with this one.

use crate::api::types::Problem;
use crate::model::error::Code;
use crate::model::id::PeerId;
use crate::p2p::PeerStatus;
use crate::wire::agent::VERSIONS;

/// What `status` says of connected members with whom this program has no version in common.
pub(crate) fn problems<'a>(
    known: impl Iterator<Item = &'a PeerStatus>,
    name: impl Fn(PeerId) -> String,
) -> Vec<Problem> {
    let told = |peer: &PeerStatus| {
        let agent = peer.agent.as_ref()?;
        let why = agent.no_common()?;
        let name = name(peer.peer);
        let older = if agent.versions.least > VERSIONS.most {
            "this machine".to_owned()
        } else {
            name.clone()
        };
        Some(Problem {
            code: Code::Version.to_string(),
            severity: "warning".into(),
            message: format!("{name} and this machine do not understand each other: {why}"),
            help: format!("install a newer byway on {older}"),
        })
    };
    known.filter_map(told).collect()
}
