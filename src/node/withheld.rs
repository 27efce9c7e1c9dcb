//! Names that are kept and lead nowhere now: their workloads are unhealthy, not running, or yet to come.

use crate::api::types::Error;
use crate::model::id::Name;
use crate::model::members::Subnet;
use crate::node::{Core, Node};

/// A workload whose name is kept while nobody is sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Withheld {
    /// Name of the workload.
    pub workload: Name,
    /// The subnet that it is in.
    pub subnet: Name,
    /// The member that it is attached to.
    pub member: Name,
    /// Whether it is unhealthy, where it is this machine's; another one does not tell why.
    pub unhealthy: Option<bool>,
    /// Whether a file that was imported here keeps the name for a workload that has not come yet.
    pub planned: bool,
}

impl Core {
    /// The workload that a text names, `web` or `web.member`, where nobody is sent to it now.
    pub(in crate::node) fn withheld(&self, text: &str) -> Option<Withheld> {
        let of = |subnet: &Subnet| {
            let name = subnet.relative(text);
            let short = name
                .strip_suffix(&format!(".{}", subnet.name()))
                .unwrap_or(&name);
            let resolved = subnet.resolve(self.now());
            resolved.members.iter().find_map(|(peer, member)| {
                let meant = |w: &&str| *w == short || format!("{w}.{}", member.name) == short;
                let workload: Name = member.withheld().find(meant)?.parse().ok()?;
                let is_mine = *peer == self.state.me.peer;
                let is_here = subnet.local.workloads.iter().any(|w| w.name == workload);
                let planned = is_mine && !is_here && subnet.plan_of(&workload).is_some();
                Some(Withheld {
                    workload: workload.clone(),
                    subnet: subnet.name().clone(),
                    member: member.name.clone(),
                    unhealthy: is_mine.then(|| subnet.unhealthy(&workload).is_some()),
                    planned,
                })
            })
        };
        self.state.subnets.values().find_map(of)
    }
}

impl Node {
    /// The workload that a text names, where nobody is sent to it now.
    ///
    /// # Errors
    /// When the node is gone.
    pub async fn withheld(&self, text: String) -> Result<Option<Withheld>, Error> {
        self.read(move |core| core.withheld(&text)).await
    }
}
