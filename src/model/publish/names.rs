//! The names that this node has answered: which are free, and what can be said of one.

use crate::model::error::{Code, Error, Hint, Kind, Result};
use crate::model::heard::may_name;
use crate::model::id::Name;
use crate::model::members::{Identity, Subnet, printable};
use crate::model::record::{NameEntry, data_fits, is_record_name};
use crate::model::resolve::{Member, Resolved};
use crate::model::zone::{MAX_NAME, MAX_SET, MAX_TTL, RecordData};

impl Subnet {
    pub(super) fn name_is_taken(&self, me: &Identity, resolved: &Resolved, name: &str) -> bool {
        self.is_name_of_another(me, resolved, name)
            || self.local.workloads.iter().any(|w| w.name.as_str() == name)
    }

    /// Whether a name is a member's, or stands for what another member has.
    pub(super) fn is_name_of_another(
        &self,
        me: &Identity,
        resolved: &Resolved,
        name: &str,
    ) -> bool {
        let last = name.rsplit('.').next().unwrap_or(name);
        let below =
            |m: &Member| m.name.as_str() == last && (last == name || m.grant.subject != me.peer);
        let held = resolved.flat.get(name).is_some_and(|by| *by != me.peer)
            || resolved.contested.contains_key(name);
        resolved.members.values().any(|m| below(m)) || held
    }

    /// The name, or the next numbered one that no member, workload or record of this subnet has.
    pub fn free_name(&self, me: &Identity, resolved: &Resolved, wanted: &Name) -> Name {
        wanted.free(|name| self.name_is_taken(me, resolved, name.as_str()))
    }

    /// The same for a workload that is called `now`: where only another has the name that it wants, it keeps its own.
    pub fn free_name_instead(
        &self,
        me: &Identity,
        resolved: &Resolved,
        wanted: &Name,
        now: &Name,
    ) -> Name {
        wanted.free(|name| name != now && self.name_is_taken(me, resolved, name.as_str()))
    }

    /// Whether the DNS can say these answers of a name, together with those this node says already.
    fn can_be_said(&self, me: &Identity, name: &str, data: &[RecordData], ttl: u32) -> Result<()> {
        let wrong = |code, message| Err(Error::new(Kind::Usage, code, message));
        let misleading =
            |d: &&RecordData| matches!(d, RecordData::Address(address) if !may_name(*address));
        if let Some(RecordData::Address(address)) = data.iter().find(misleading) {
            let message = format!(
                "{address} is no address for a name: it leads whoever asks to itself or its own link"
            );
            return wrong(Code::Address, message);
        }
        if ttl > MAX_TTL {
            return wrong(
                Code::Ttl,
                format!("a time to live has at most {MAX_TTL} seconds, this has {ttl}"),
            );
        }
        let zone = &self.records.genesis.domain;
        if !is_record_name(name) {
            return wrong(
                Code::Name,
                format!("{} cannot be a name of zone {zone}", printable(name)),
            );
        }
        let whole = name.len().saturating_add(1).saturating_add(zone.len());
        if whole > MAX_NAME {
            let message = format!(
                "{name}.{zone} has {whole} characters: a name has at most {MAX_NAME} in all"
            );
            return wrong(Code::Name, message);
        }
        let own = self.records.announcement(me.peer);
        for answer in data {
            let said = own.into_iter().flat_map(|d| &d.names);
            let said = said
                .filter(|n| n.name == name)
                .map(|n| &n.data)
                .filter(|d| !data.contains(d));
            let same = said.chain(data).filter(|d| d.kind() == answer.kind());
            let size = same
                .map(RecordData::size)
                .fold(0usize, usize::saturating_add);
            if size > MAX_SET {
                let message = format!(
                    "the {} records of {name} would have {size} bytes: one answer holds at most {MAX_SET}",
                    answer.kind()
                );
                return wrong(Code::DnsSize, message);
            }
            if !data_fits(answer) {
                let message = format!(
                    "the {} record of {name} leads to what cannot be a name",
                    answer.kind()
                );
                return wrong(Code::Name, message);
            }
        }
        Ok(())
    }

    /// Adds answers for a name.
    ///
    /// # Errors
    /// `E-ADDRESS`, `E-TTL`, `E-NAME`, `E-DNS-SIZE`, `E-NAME-TAKEN`, `E-CNAME`.
    pub fn dns_add(
        &mut self,
        me: &Identity,
        name: &str,
        data: &[RecordData],
        ttl: u32,
        now: u64,
    ) -> Result<()> {
        let resolved = self.resolve(now);
        self.myself(me, &resolved)?;
        let name = self.relative(name);
        self.can_be_said(me, &name, data, ttl)?;
        if self.name_is_taken(me, &resolved, &name) {
            return Err(Error::new(
                Kind::Conflict,
                Code::NameTaken,
                format!("the name {name} is taken in subnet {}", self.name()),
            )
            .hint(Hint::ListNames(self.name().clone())));
        }
        let has = |d: &dyn Fn(&RecordData) -> bool| {
            resolved.answers(&name).any(|n| d(&n.data)) || data.iter().any(d)
        };
        // RFC 1034, 3.6.2: a CNAME stands alone.
        if has(&|d| matches!(d, RecordData::Cname(_)))
            && has(&|d| !matches!(d, RecordData::Cname(_)))
        {
            return Err(Error::new(
                Kind::Conflict,
                Code::Cname,
                format!("{name} cannot have a CNAME beside other records"),
            ));
        }
        self.publish(me, now, |d| {
            for answer in data {
                d.names.retain(|n| !(n.name == name && n.data == *answer));
                d.names.push(NameEntry {
                    name: name.clone(),
                    data: answer.clone(),
                    ttl,
                });
            }
        })
    }

    /// Takes answers of this node's own away; gives how many.
    ///
    /// # Errors
    /// `E-NO-NAME`, also where another member said the name.
    pub fn dns_rm(
        &mut self,
        me: &Identity,
        name: &str,
        kind: Option<&str>,
        now: u64,
    ) -> Result<usize> {
        let name = self.relative(name);
        let matches = |n: &NameEntry| {
            n.name == name && kind.is_none_or(|k| n.data.kind().eq_ignore_ascii_case(k))
        };
        let count = self
            .records
            .announcement(me.peer)
            .map_or(0, |d| d.names.iter().filter(|n| matches(n)).count());
        if count == 0 {
            return Err(Error::new(
                Kind::NotFound,
                Code::NoName,
                format!(
                    "this node added no name {} to subnet {}",
                    printable(&name),
                    self.name()
                ),
            )
            .hint(Hint::ListNames(self.name().clone())));
        }
        self.publish(me, now, |d| d.names.retain(|n| !matches(n)))?;
        Ok(count)
    }

    /// A name without the zone behind it, lower case.
    pub fn relative(&self, name: &str) -> String {
        let lower = name.trim_end_matches('.').to_ascii_lowercase();
        let zone = &self.records.genesis.domain;
        lower
            .strip_suffix(zone.as_str())
            .and_then(|n| n.strip_suffix('.'))
            .map(str::to_owned)
            .unwrap_or(lower)
    }
}
