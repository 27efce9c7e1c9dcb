//! What is added and waits for the kernel: confirmed once that has taken it, else taken back whole.

use crate::api::types::{Error, ErrorKind, MapInfo};
use crate::model::error::{Code, Hint};
use crate::model::host::{NetnsRef, Part};
use crate::model::id::{Name, SubnetId};
use crate::model::local::Map;
use crate::model::publish::Added;
use crate::model::workload::Workload;
use crate::node::Core;

/// Something that a command has added. It is recorded as unconfirmed: unless it is [confirmed](Core::confirm), the next start
/// of the daemon takes it back, as [`Core::undo`] does at once.
#[must_use = "what is neither confirmed nor undone is lost with the next start"]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addition {
    subnet: SubnetId,
    what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Workload(Box<Workload>),
    Maps(Name, Vec<Map>),
    /// The namespace of a workload that was attached before without one, and what it was then.
    Placed(Box<Workload>, NetnsRef),
    /// A workload that was attached before, and stays attached.
    Already(Name),
}

impl Addition {
    pub(super) fn of_workload(subnet: SubnetId, workload: Workload) -> Addition {
        Addition {
            subnet,
            what: What::Workload(Box::new(workload)),
        }
    }

    pub(super) fn already(subnet: SubnetId, workload: Name) -> Addition {
        Addition {
            subnet,
            what: What::Already(workload),
        }
    }

    /// The subnet it was added in.
    pub fn subnet(&self) -> SubnetId {
        self.subnet
    }

    /// What the kernel has to take of it.
    pub fn part(&self) -> Option<Part> {
        match &self.what {
            What::Workload(workload) | What::Placed(workload, _) => {
                Some(Part::Workload(self.subnet, workload.name.clone()))
            }
            What::Already(name) => Some(Part::Workload(self.subnet, name.clone())),
            What::Maps(name, _) => Some(Part::Map(self.subnet, name.clone())),
        }
    }

    /// `before` was given that namespace.
    pub(super) fn of_placed(subnet: SubnetId, before: Workload, netns: NetnsRef) -> Addition {
        Addition {
            subnet,
            what: What::Placed(Box::new(before), netns),
        }
    }

    /// Whether it may be taken back at any later time: it stays marked as unconfirmed until then. A placement bears no such
    /// mark, so whoever attaches the workload meanwhile relies on it.
    pub(crate) fn is_marked(&self) -> bool {
        !matches!(self.what, What::Placed(..))
    }

    /// Maps of one name.
    pub(super) fn of_maps(subnet: SubnetId, name: Name, maps: Vec<Map>) -> Addition {
        Addition {
            subnet,
            what: What::Maps(name, maps),
        }
    }
}

impl Core {
    /// What was added stands: the kernel has taken it.
    ///
    /// # Errors
    /// `E-NO-SUBNET`; `E-NO-WORKLOAD` where the workload was taken back or detached meanwhile; as [`Core::commit`].
    pub fn confirm(&mut self, added: &Addition) -> Result<(), Error> {
        let mut subnet = self.state.edit(&added.subnet.to_string())?;
        let workload = match &added.what {
            What::Workload(workload) | What::Placed(workload, _) => &workload.name,
            What::Already(name) => name,
            What::Maps(name, _) => {
                subnet.confirm(name, Added::Map);
                return self.save(subnet).map(drop);
            }
        };
        if !subnet.local.workloads.iter().any(|w| w.name == *workload) {
            let message = format!("{workload} was detached meanwhile");
            return Err(Error::new(ErrorKind::NotFound, Code::NoWorkload, message)
                .hint(Hint::ListWorkloads));
        }
        subnet.confirm(workload, Added::Workload);
        self.save(subnet).map(drop)
    }

    /// Takes back what was added and is not confirmed. What was there before, and what has been added since under the same
    /// name, stays. Whether there was anything to take back.
    ///
    /// # Errors
    /// As [`Core::commit`].
    pub fn undo(&mut self, added: &Addition) -> Result<bool, Error> {
        let Some(mut subnet) = self.state.subnets.get(&added.subnet).cloned() else {
            return Ok(false);
        };
        let unconfirmed = &subnet.local.unconfirmed;
        match &added.what {
            What::Already(_) => return Ok(false),
            What::Placed(before, netns) => {
                if !subnet.unplace(before, netns) {
                    return Ok(false);
                }
                let (me, now) = (self.state.me.clone(), self.now());
                let why = before.target.once_ended();
                subnet.went_away(&me, &before.name, (why, None), now)?;
            }
            What::Workload(workload) => {
                let same = |w: &Workload| {
                    (&w.name, &w.target, w.since)
                        == (&workload.name, &workload.target, workload.since)
                };
                let doubted = unconfirmed.workloads.contains(&workload.name);
                if !doubted || !subnet.local.workloads.iter().any(same) {
                    return Ok(false);
                }
                subnet.detach(&self.state.me.clone(), workload.name.as_str(), self.now())?;
            }
            What::Maps(name, maps) => {
                if !unconfirmed.maps.contains(name)
                    || !subnet.local.maps.iter().any(|map| maps.contains(map))
                {
                    return Ok(false);
                }
                subnet.map_remove(|map| maps.contains(map));
            }
        }
        self.save(subnet)?;
        Ok(true)
    }

    /// The maps of an addition as they are now.
    pub(in crate::node) fn maps_of(&self, added: &Addition) -> Vec<MapInfo> {
        let (Some(subnet), What::Maps(_, maps)) =
            (self.state.subnets.get(&added.subnet), &added.what)
        else {
            return vec![];
        };
        let resolved = subnet.resolve(self.now());
        self.map_infos(subnet, &resolved, |map| maps.contains(map))
    }
}
