//! What this node's person and its timers ask of the node, each as one call: decided, saved and published in one turn of
//! the node's thread.
//!
//! A call that changes what the kernel must match answers with an [`Effect`]. Whether the kernel has followed is known to
//! who watches it; what it refused is taken back by one more call ([`Node::undo`], [`Node::forget`]).
//!
//! Every call fails with `E-STOPPING` when the node is gone, and with the store's error when the decision could not be
//! saved: then nothing has changed. Further errors are those of the [`Core`] method of the same name.
//!
//! None of them is undone when its caller stops waiting: what was queued is done.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;

use super::{
    Addition, Asker, Container, ContainerNames, Core, Examined, Former, Lane, Leaving, Made, Named,
    NewEndpoint, NewImport, NewMap, NewWorkload, Node, Own, Pursued, Runner, Seen, Staged,
    Underlying,
};
use crate::api::types::{
    Attached, Created, Error, HealthCheck, HostInfo, ImportMap, MapInfo, Problem, Response,
};
use crate::model::health::{Subject, Turn};
use crate::model::host::{HostPolicy, NetnsRef, Proto};
use crate::model::id::{Name, PeerId, SubnetId};
use crate::model::local::PendingJoin;
use crate::model::ports::PortRange;
use crate::model::record::{Role, Term};
use crate::model::state::Founding;
use crate::model::workload::Target;
use crate::model::zone::RecordData;

/// The answer to a command, and when it is true of the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect<T> {
    /// What the command gives to who asked.
    pub answer: T,
    /// The generation of the View that shows it: once the kernel matches that one, the answer is true of the machine, too.
    pub generation: u64,
}

impl Node {
    /// Runs a job in the lane of this node's own commands.
    async fn own<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.run(job).await?
    }

    /// Runs a job that the kernel has to follow, and gives the generation that shows it.
    async fn change<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Core) -> Result<T, Error> + Send + 'static,
    ) -> Result<Effect<T>, Error> {
        let told = |core: &mut Core| {
            job(core).map(|answer| Effect {
                answer,
                generation: core.generation(),
            })
        };
        self.own(told).await
    }
}

/// Commands about subnets and joins.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// `create`. What the kernel refuses of it is taken back by [`Node::forget`].
    pub async fn create(&self, founding: Founding) -> Result<Effect<Created>, Error> {
        self.change(move |core| core.create(founding)).await
    }

    /// `leave`, up to the goodbye: the membership goes with [`Node::forget`].
    pub async fn leave(&self, subnet: String) -> Result<Leaving, Error> {
        self.own(move |core| core.leave(&subnet)).await
    }

    /// `destroy`, up to the owner's last head: the membership goes with [`Node::forget`]. `None`: it was gone before.
    pub async fn destroy(&self, subnet: String) -> Result<Option<SubnetId>, Error> {
        self.own(move |core| core.destroy(&subnet)).await
    }

    /// Removes a subnet from this node.
    pub async fn forget(&self, subnet: SubnetId) -> Result<Effect<()>, Error> {
        self.change(move |core| core.forget(subnet).map(drop)).await
    }

    /// `up` and `down`, of one subnet or of all.
    pub async fn set_up(
        &self,
        subnet: Option<String>,
        up: bool,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.set_up(subnet.as_deref(), up))
            .await
    }

    /// Carries out `subnet host SUBNET SPEC`.
    pub async fn set_host_policy(
        &self,
        subnet: String,
        host: HostPolicy,
    ) -> Result<Effect<HostInfo>, Error> {
        self.change(move |core| core.set_host_policy(&subnet, host))
            .await
    }

    /// Adds addresses where members of a subnet may be; whether one of them is new.
    pub async fn add_hints(&self, subnet: SubnetId, hints: Vec<String>) -> Result<bool, Error> {
        self.own(move |core| core.add_hints(subnet, &hints)).await
    }

    /// Notes that a person asked for a membership, so that it no longer goes with its declaration.
    pub async fn keep_by_hand(&self, subnet: SubnetId) -> Result<(), Error> {
        self.own(move |core| core.keep_by_hand(subnet)).await
    }

    /// Begins or continues a join of this node's own; gives what is asked now.
    pub async fn begin_join(
        &self,
        join: PendingJoin,
        keeps_host: bool,
    ) -> Result<PendingJoin, Error> {
        self.own(move |core| core.begin_join(join, keeps_host))
            .await
    }

    /// Ends a join that found nobody, unless it has let this node in meanwhile: whether it was ended.
    pub async fn give_up(&self, subnet: SubnetId) -> Result<bool, Error> {
        self.own(move |core| core.give_up(subnet)).await
    }
}

/// Commands about members, their invites and their leases.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// Carries out `invite create`.
    pub async fn invite_create(
        &self,
        subnet: String,
        uses: u32,
        expires_ms: u64,
        (role, term): (Role, Term),
        labels: BTreeMap<String, String>,
    ) -> Result<Response, Error> {
        self.own(move |core| core.invite_create(&subnet, uses, expires_ms, (role, term), labels))
            .await
    }

    /// Carries out `invite revoke`.
    pub async fn invite_revoke(
        &self,
        subnet: Option<String>,
        invite: String,
    ) -> Result<Response, Error> {
        self.own(move |core| core.invite_revoke(subnet.as_deref(), &invite))
            .await
    }

    /// Carries out `member approve` and `member deny`.
    pub async fn decide_request(
        &self,
        subnet: String,
        who: String,
        approve: bool,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.decide_request(&subnet, &who, approve))
            .await
    }

    /// Carries out `member remove`.
    pub async fn member_remove(
        &self,
        subnet: String,
        member: String,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.member_remove(&subnet, &member))
            .await
    }

    /// Carries out `member role`.
    pub async fn member_role(
        &self,
        subnet: String,
        member: String,
        role: Role,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.member_role(&subnet, &member, role))
            .await
    }

    /// Carries out `member label`.
    pub async fn member_label(
        &self,
        subnet: String,
        member: String,
        labels: BTreeMap<String, String>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.member_label(&subnet, &member, &labels))
            .await
    }

    /// `lease add`: to a member, any peer by its ID, or this node where nobody is named.
    pub async fn lease_add(
        &self,
        subnet: String,
        prefix: IpNet,
        member: Option<String>,
    ) -> Result<Effect<Response>, Error> {
        let given = move |core: &mut Core| {
            let owner = core.lease_owner(&subnet, member.as_deref())?;
            core.lease_add(&subnet, &[(prefix, owner)])
        };
        self.change(given).await
    }

    /// Carries out `lease import`.
    pub async fn lease_import(
        &self,
        subnet: String,
        entries: Vec<(IpNet, PeerId)>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.lease_add(&subnet, &entries))
            .await
    }

    /// Carries out `lease rm`.
    pub async fn lease_rm(
        &self,
        subnet: String,
        prefix: IpNet,
        member: Option<String>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.lease_rm(&subnet, prefix, member.as_deref()))
            .await
    }
}

/// Workloads, names and port maps of this machine.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// `attach`. It is to be [confirmed](Node::confirm) or [undone](Node::undo).
    pub async fn attach(
        &self,
        subnet: String,
        new: NewWorkload,
        ip: Option<IpAddr>,
    ) -> Result<Effect<(Attached, Addition)>, Error> {
        self.change(move |core| core.attach(&subnet, new, ip)).await
    }

    /// Carries out `detach`.
    pub async fn detach(
        &self,
        workload: String,
        subnet: Option<String>,
        interface: Option<String>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.detach(&workload, subnet.as_deref(), interface.as_deref()))
            .await
    }

    /// Carries out what an engine says of a container's end.
    pub async fn detach_container(
        &self,
        of: Target,
        interface: String,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.detach_container(&of, &interface))
            .await
    }

    /// See [`Core::underlying`].
    pub async fn underlying(&self, subnet: Option<String>) -> Result<Underlying, Error> {
        self.own(move |core| core.underlying(subnet.as_deref()))
            .await
    }

    /// See [`Core::free_address`].
    pub async fn free_address(
        &self,
        subnet: SubnetId,
        ipv6: bool,
        wanted: Option<IpAddr>,
        avoid: BTreeSet<IpAddr>,
    ) -> Result<IpAddr, Error> {
        self.own(move |core| core.free_address(subnet, ipv6, wanted, &avoid))
            .await
    }

    /// See [`Core::stage`]. It is to be [confirmed](Node::confirm) or [undone](Node::undo).
    pub async fn stage(
        &self,
        subnet: SubnetId,
        new: NewEndpoint,
    ) -> Result<Effect<(Staged, Addition)>, Error> {
        self.change(move |core| core.stage(subnet, new)).await
    }

    /// See [`Core::staged_endpoint`].
    pub async fn staged_endpoint(&self, id: String) -> Result<Staged, Error> {
        self.own(move |core| core.staged_endpoint(&id)).await
    }

    /// See [`Core::staged_endpoints`].
    pub async fn staged_endpoints(&self) -> Result<Vec<Staged>, Error> {
        self.own(|core| Ok(core.staged_endpoints())).await
    }

    /// See [`Core::adopt`].
    pub async fn adopt(&self, id: String, netns: NetnsRef, link: String) -> Result<bool, Error> {
        self.own(move |core| core.adopt(&id, netns, &link)).await
    }

    /// See [`Core::unstage`].
    pub async fn unstage(&self, id: String) -> Result<bool, Error> {
        self.own(move |core| core.unstage(&id)).await
    }

    /// See [`Core::restage`].
    pub async fn restage(&self, id: String) -> Result<Effect<Staged>, Error> {
        self.change(move |core| core.restage(&id)).await
    }

    /// See [`Core::planned_address`].
    pub async fn planned_address(
        &self,
        subnet: SubnetId,
        container: String,
        ipv6: bool,
    ) -> Result<Option<IpAddr>, Error> {
        self.own(move |core| Ok(core.planned_address(subnet, &container, ipv6)))
            .await
    }

    /// See [`Core::remove_endpoint`].
    pub async fn remove_endpoint(&self, id: String) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.remove_endpoint(&id)).await
    }

    /// See [`Core::name_endpoint`].
    pub async fn name_endpoint(&self, id: String, wanted: ContainerNames) -> Result<Named, Error> {
        self.own(move |core| core.name_endpoint(&id, &wanted)).await
    }

    /// See [`Core::tell`].
    pub async fn tell(&self, asker: Asker, problems: Vec<Problem>) -> Result<(), Error> {
        self.run(move |core| core.tell(asker, problems)).await
    }

    /// See [`Core::container_is`].
    pub async fn container_is(&self, endpoint: String, container: Container) -> Result<(), Error> {
        self.run(move |core| core.container_is(endpoint, container))
            .await
    }

    /// See [`Core::plugin_engine`].
    pub async fn plugin_engine(&self, engine: Option<(PathBuf, bool)>) -> Result<(), Error> {
        self.run(move |core| core.plugin_engine(engine)).await
    }

    /// Carries out `workload health`.
    pub async fn set_health(
        &self,
        workload: String,
        subnet: Option<String>,
        check: Option<HealthCheck>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.set_health(&workload, subnet.as_deref(), check))
            .await
    }

    /// See [`Core::runner_of`].
    pub async fn runner_of(
        &self,
        workload: String,
        subnet: Option<String>,
    ) -> Result<(Name, Runner), Error> {
        self.own(move |core| core.runner_of(&workload, subnet.as_deref()))
            .await
    }

    /// See [`Core::label_health`].
    pub async fn label_health(
        &self,
        endpoint: String,
        label: Option<String>,
    ) -> Result<bool, Error> {
        self.own(move |core| core.label_health(&endpoint, label.as_deref()))
            .await
    }

    /// See [`Core::asked`].
    pub async fn asked(&self) -> Result<BTreeMap<Subject, Examined>, Error> {
        self.own(|core| Ok(core.asked())).await
    }

    /// See [`Core::judged`].
    pub async fn judged(&self, turns: Vec<(Subject, Turn, String)>) -> Result<(), Error> {
        self.own(move |core| core.judged(turns)).await
    }

    /// `import`.
    pub async fn import(&self, source: String, all: Vec<NewImport>) -> Result<Effect<Made>, Error> {
        self.change(move |core| core.import(&source, all)).await
    }

    /// See [`Core::import_undo`].
    pub async fn import_undo(
        &self,
        source: String,
        former: BTreeMap<SubnetId, Former>,
    ) -> Result<(), Error> {
        self.own(move |core| core.import_undo(&source, &former))
            .await
    }

    /// See [`Core::import_returns`].
    pub async fn import_returns(&self, source: String) -> Result<Vec<(String, ImportMap)>, Error> {
        self.own(move |core| core.import_returns(&source)).await
    }

    /// `import --rollback`.
    pub async fn import_back(&self, source: String) -> Result<Effect<Made>, Error> {
        self.change(move |core| core.import_back(&source)).await
    }

    /// Carries out `dns add`.
    pub async fn dns_add(
        &self,
        subnet: String,
        name: String,
        data: Vec<RecordData>,
        ttl: u32,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.dns_add(&subnet, &name, &data, ttl))
            .await
    }

    /// Carries out `dns release`.
    pub async fn dns_release(
        &self,
        subnet: String,
        name: String,
        member: Option<String>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.dns_release(&subnet, &name, member.as_deref()))
            .await
    }

    /// Carries out `dns rm`.
    pub async fn dns_rm(
        &self,
        subnet: String,
        name: String,
        kind: Option<String>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.dns_rm(&subnet, &name, kind.as_deref()))
            .await
    }

    /// `map add`. It is to be [confirmed](Node::confirm_map) or [undone](Node::undo).
    pub async fn map_add(&self, subnet: String, new: NewMap) -> Result<Effect<Addition>, Error> {
        self.change(move |core| core.map_add(&subnet, new)).await
    }

    /// Carries out `map rm`, for a user `own` of what goes with its workloads alone.
    pub async fn map_rm(
        &self,
        subnet: String,
        name: Option<String>,
        key: Option<(Proto, Option<IpAddr>, PortRange)>,
        own: Option<Own>,
    ) -> Result<Effect<Response>, Error> {
        self.change(move |core| core.map_rm(&subnet, name.as_deref(), key, own))
            .await
    }

    /// The kernel has taken an addition: it stands, also after a restart.
    pub async fn confirm(&self, added: Addition) -> Result<(), Error> {
        self.own(move |core| core.confirm(&added)).await
    }

    /// The same for port maps; gives them as they are now, none where they were removed meanwhile.
    pub async fn confirm_map(&self, added: Addition) -> Result<Vec<MapInfo>, Error> {
        self.own(move |core| core.confirm(&added).map(|()| core.maps_of(&added)))
            .await
    }

    /// The kernel has refused an addition: nothing is left of it, and what was there before stays. Whether there was
    /// anything to take back.
    pub async fn undo(&self, added: Addition) -> Result<bool, Error> {
        self.own(move |core| core.undo(&added)).await
    }
}

/// What the machine and the clock bring about.
#[expect(
    clippy::missing_errors_doc,
    reason = "stated for all calls at the top of this file"
)]
impl Node {
    /// What happens by the passing of time; called about every second. A failure of the upkeep itself is logged.
    pub async fn tick(&self) -> Result<(), Error> {
        if let Err(error) = self.decide(Lane::House, Core::tick).await? {
            tracing::warn!(%error, "upkeep");
        }
        Ok(())
    }

    /// Joins to begin, of subnets that this node fell out of without being removed. They are saved already.
    pub async fn ask_again(&self) -> Result<Vec<PendingJoin>, Error> {
        Ok(self
            .decide(Lane::Own, |core| Ok(core.ask_again()))
            .await?
            .unwrap_or_default())
    }

    /// What the last look at the kernel has found: links of others that have the name of a subnet's interface, which gets
    /// another, and workloads whose namespace is gone. What cannot be saved is logged, and found again by the next look.
    pub async fn kernel_lacks(
        &self,
        taken: Vec<String>,
        dead: Vec<(SubnetId, Name, NetnsRef)>,
    ) -> Result<(), Error> {
        if taken.is_empty() && dead.is_empty() {
            return Ok(());
        }
        let found = move |core: &mut Core| {
            taken.iter().for_each(|link| core.link_taken(link));
            dead.iter()
                .for_each(|(subnet, name, netns)| core.workload_died(*subnet, name, netns));
            Ok(())
        };
        if let Err(error) = self.decide(Lane::Own, found).await? {
            tracing::warn!(%error, "save new names of interfaces and which workloads are gone");
        }
        Ok(())
    }

    /// The namespace of a workload is gone: its name and its addresses are free.
    pub async fn workload_died(
        &self,
        subnet: SubnetId,
        name: Name,
        netns: NetnsRef,
    ) -> Result<(), Error> {
        self.run(move |core| core.workload_died(subnet, &name, &netns))
            .await
    }

    /// What was seen of workloads that are followed; gives those that are to be looked at again. What cannot be saved is
    /// logged, and all of it is given back.
    pub async fn sighted(&self, sightings: Vec<(Pursued, Seen)>) -> Result<Vec<Pursued>, Error> {
        let all = sightings.iter().map(|(known, _)| known.clone()).collect();
        let seen = move |core: &mut Core| core.sighted(sightings);
        match self.decide(Lane::Own, seen).await? {
            Ok(stale) => Ok(stale),
            Err(error) => {
                tracing::warn!(%error, "could not save which workloads are here");
                Ok(all)
            }
        }
    }

    /// Whether the engine at that socket answers.
    pub async fn engine_answers(&self, engine: PathBuf, answers: bool) -> Result<(), Error> {
        self.run(move |core| core.engine_answers(&engine, answers))
            .await
    }

    /// Detaches workloads that their engines have had no more for a day.
    pub async fn end_removed(&self) -> Result<(), Error> {
        self.own(Core::end_removed).await
    }

    /// Publishes the View anew, for those that follow it to look again.
    pub async fn publish(&self) -> Result<(), Error> {
        self.run(Core::publish).await
    }
}
