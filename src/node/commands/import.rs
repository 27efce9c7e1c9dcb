//! Files that describe workloads to come: imported whole and taken back whole, over all subnets that they name.

use std::collections::{BTreeMap, BTreeSet};

use super::maps::check_count;
use crate::api::types::{
    Error, ErrorKind, ImportInfo, ImportMap, ImportWorkload, Imported, ImportedWorkload,
};
use crate::model::error::Code;
use crate::model::id::{Name, SubnetId};
use crate::model::import::{Contents, Import, Planned, Wanted, WantedMap};
use crate::model::local::Map;
use crate::model::members::{Subnet, printable};
use crate::model::record::is_record_name;
use crate::model::state::Draft;
use crate::node::Core;

/// Longest path of a file, in bytes.
const MAX_SOURCE: usize = 4096;
/// Files whose imports one subnet remembers.
const MAX_FILES: usize = 64;
/// Further names of one workload: each is a record that every member of the subnet keeps.
const MAX_ALIASES: usize = 32;

/// A workload as it was asked for, read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewImport {
    asked: ImportWorkload,
    mac: Option<[u8; 6]>,
}

impl NewImport {
    /// `mac` is what the text in it says.
    pub fn new(asked: ImportWorkload, mac: Option<[u8; 6]>) -> NewImport {
        NewImport { asked, mac }
    }
}

/// What an import has made, and what of it the kernel is to take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// What is told of it.
    pub imported: Imported,
    /// The port maps.
    pub maps: Vec<(SubnetId, Name)>,
    /// What each subnet had by the file before.
    pub former: BTreeMap<SubnetId, Former>,
}

/// What a subnet had by a file, whole: with the step that could be rolled back, and without maps that were taken away by hand.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Former {
    import: Option<Import>,
    gone: BTreeSet<Name>,
}

impl Former {
    fn of(subnet: &Subnet, source: &str) -> Former {
        let import = subnet.local.imports.get(source).cloned();
        let made = import.iter().flat_map(|import| &import.now.maps);
        let gone = made.filter(|map| !subnet.local.maps.contains(map));
        Former {
            gone: gone.map(|map| map.name.clone()).collect(),
            import,
        }
    }
}

fn usage(code: Code, message: String) -> Error {
    Error::new(ErrorKind::Usage, code, message)
}

/// What is asked for, as far as it can be checked without a subnet.
fn wanted(new: NewImport) -> Result<Wanted, Error> {
    let NewImport { asked, mac } = new;
    let name = &asked.name;
    if asked.aliases.len() > MAX_ALIASES {
        let message = format!("{name} has more than {MAX_ALIASES} further names");
        return Err(usage(Code::Import, message));
    }
    if let [one, two, ..] = asked.addresses[..]
        && (asked.addresses.len() > 2 || one.is_ipv4() == two.is_ipv4())
    {
        let message = format!("{name} is to have two addresses of one family");
        return Err(usage(Code::Address, message));
    }
    if let Some(wrong) = asked.aliases.iter().find(|alias| !is_record_name(alias)) {
        let message = format!("{} of {name} cannot be a name", printable(wrong));
        return Err(usage(Code::Name, message));
    }
    let mut maps = Vec::new();
    for map in asked.maps {
        check_count(map.ports, map.target_ports)?;
        maps.push(WantedMap {
            proto: map.proto,
            listen: map.listen,
            ports: map.ports,
            target_port: map.target_ports.first(),
            by_engine: map.by_engine,
        });
    }
    Ok(Wanted {
        planned: Planned {
            addresses: asked.addresses,
            containers: asked
                .containers
                .iter()
                .map(|c| Name::from_container(c))
                .collect(),
            mac,
            aliases: asked.aliases.into_iter().collect(),
        },
        name: asked.name,
        maps,
        ipv4_only: asked.ipv4_only,
        line: asked.line,
    })
}

/// What a subnet has by a file.
fn contents<'a>(subnet: &'a Subnet, source: &str) -> Option<&'a Contents> {
    subnet.local.imports.get(source).map(|import| &import.now)
}

/// What is shown of the workloads that subnets have by a file.
fn shown<'a>(subnets: impl Iterator<Item = &'a Subnet>, source: &str) -> Vec<ImportedWorkload> {
    let mut all = Vec::new();
    for subnet in subnets {
        let Some(now) = contents(subnet, source) else {
            continue;
        };
        for (name, planned) in &now.planned {
            let leads = |map: &&Map| map.target.split('.').next() == Some(name.as_str());
            let maps = now.maps.iter().filter(leads);
            all.push(ImportedWorkload {
                workload: name.clone(),
                subnet: subnet.name().clone(),
                addresses: planned.addresses.clone(),
                aliases: planned.aliases.iter().cloned().collect(),
                maps: maps
                    .map(|m| format!("{} {}", m.proto, m.listens_at()))
                    .collect(),
                here: subnet.local.workloads.iter().any(|w| w.name == *name),
            });
        }
    }
    all
}

/// Names of workloads and maps that are in the first and not in the second.
fn missing(before: &Contents, now: Option<&Contents>) -> BTreeSet<String> {
    let gone = |name: &&Name| now.is_none_or(|now| !now.planned.contains_key(*name));
    let workloads = before.planned.keys().filter(gone).map(Name::to_string);
    let unmapped = |map: &&Map| now.is_none_or(|now| now.maps.iter().all(|m| m.name != map.name));
    let maps = before
        .maps
        .iter()
        .filter(unmapped)
        .map(|m| m.name.to_string());
    workloads.chain(maps).collect()
}

impl Core {
    /// `import`: this machine has of the file what it says now and nothing else. Where the file says what it said before,
    /// nothing is changed.
    ///
    /// # Errors
    /// Of anything in it, and then nothing is changed: `E-NO-SUBNET`; see [`Subnet::plan`].
    pub fn import(&mut self, source: &str, all: Vec<NewImport>) -> Result<Made, Error> {
        if source.is_empty() || source.len() > MAX_SOURCE || source.chars().any(char::is_control) {
            let message = format!("{} is no path of a file", printable(source));
            return Err(usage(Code::Import, message));
        }
        let mut groups: BTreeMap<SubnetId, Vec<Wanted>> = BTreeMap::new();
        for new in all {
            let asked = new.asked.clone();
            let found = self.state.find(&asked.subnet).map_err(Error::from);
            let id = found.map_err(|error| asked.blamed(error))?.records.id;
            let wanted = wanted(new).map_err(|error| asked.blamed(error))?;
            let group = groups.entry(id).or_default();
            if group.iter().any(|w| w.name == wanted.name) {
                let message = format!("{} stands twice in the file", wanted.name);
                return Err(asked.blamed(usage(Code::Import, message)));
            }
            group.push(wanted);
        }
        let (mut copies, mut former) = self.without(source, groups.keys().copied());
        let (me, now) = (self.state.me.clone(), self.now());
        let (mut changed, mut removed) = (false, BTreeSet::new());
        for id in copies.keys().copied().collect::<Vec<_>>() {
            let others = self.maps_but(id, &copies);
            let (Some(copy), Some(before)) = (copies.get_mut(&id), former.remove(&id)) else {
                continue;
            };
            if !copy.local.imports.contains_key(source) && copy.local.imports.len() >= MAX_FILES {
                let message = format!("subnet {} has imports of {MAX_FILES} files", copy.name());
                return Err(Error::new(ErrorKind::Conflict, Code::Import, message));
            }
            let wanted = groups.remove(&id).unwrap_or_default();
            changed |= copy.plan(&me, source, (before.clone(), &wanted), &others, now)?;
            removed.extend(missing(&before, contents(copy, source)));
        }
        let whole = |s: &Subnet| s.is_whole(&me, source, now);
        if !changed && !self.state.subnets.values().all(whole) {
            self.keep_step(source, &mut copies);
            changed = true;
        }
        let mut made = self.made(source, changed, removed, copies.values());
        let before = copies.keys().filter_map(|id| self.state.subnets.get(id));
        made.former = before
            .map(|s| (s.records.id, Former::of(s, source)))
            .collect();
        if changed {
            self.save_all(copies)?;
        }
        Ok(made)
    }

    /// Takes an import back that the kernel refused: all is as it was before the call, with the step that could be rolled back.
    ///
    /// # Errors
    /// As [`Core::import_back`]; then nothing is changed.
    pub fn import_undo(
        &mut self,
        source: &str,
        former: &BTreeMap<SubnetId, Former>,
    ) -> Result<(), Error> {
        let (mut copies, mut made) = self.without(source, former.keys().copied());
        let (me, now) = (self.state.me.clone(), self.now());
        for (id, former) in former {
            let others = self.maps_but(*id, &copies);
            let (Some(copy), Some(made)) = (copies.get_mut(id), made.remove(id)) else {
                continue;
            };
            let import = former.import.clone().unwrap_or_default();
            let step = copy.local.imports.entry(source.to_owned()).or_default();
            step.before = Some(import.now.clone());
            copy.revert(&me, source, &made, &others, now)?;
            copy.local
                .maps
                .retain(|map| !(former.gone.contains(&map.name) && import.now.maps.contains(map)));
            if former.import.is_some() {
                copy.local.imports.insert(source.to_owned(), import);
            }
        }
        self.save_all(copies)
    }

    /// Answers `import ls`: every file that something is here of, or that can be rolled back, in the order of their paths.
    pub fn imports(&self) -> Vec<ImportInfo> {
        let subnets = || self.state.subnets.values();
        let imports = subnets().flat_map(|s| &s.local.imports);
        let mut files: BTreeMap<&String, bool> = BTreeMap::new();
        for (source, import) in imports {
            *files.entry(source).or_default() |= import.before.is_some();
        }
        let info = |(source, rollback): (&String, bool)| ImportInfo {
            source: source.clone(),
            rollback,
            workloads: shown(subnets(), source),
        };
        files.into_iter().map(info).collect()
    }

    /// The maps that `import --rollback` would bring back, each with its subnet's name.
    ///
    /// # Errors
    /// As [`Core::import_back`].
    pub fn import_returns(&self, source: &str) -> Result<Vec<(String, ImportMap)>, Error> {
        let (copies, _) = self.rolled_back(source)?;
        let mut maps = Vec::new();
        for (id, copy) in &copies {
            let known = self.state.subnets.get(id);
            let (Some(subnet), Some(then)) = (known, contents(copy, source)) else {
                continue;
            };
            let is_new = |map: &&Map| !subnet.local.maps.contains(map);
            let back = then.maps.iter().filter(is_new).map(|map| ImportMap {
                proto: map.proto,
                listen: Some(map.listen),
                ports: map.ports,
                target_ports: map.target_ports().unwrap_or(map.ports),
                by_engine: then.by_engine.contains(&map.name),
            });
            maps.extend(back.map(|map| (subnet.name().to_string(), map)));
        }
        Ok(maps)
    }

    /// `import --rollback`: this machine has of the file what it had before its last import.
    ///
    /// # Errors
    /// `E-IMPORT` where there is nothing to take back, or something of it was changed since; see [`Subnet::revert`].
    pub fn import_back(&mut self, source: &str) -> Result<Made, Error> {
        let (copies, removed) = self.rolled_back(source)?;
        let made = self.made(source, true, removed, copies.values());
        self.save_all(copies)?;
        Ok(made)
    }

    /// The subnets as they would be after a rollback, and what of the file would be gone.
    fn rolled_back(
        &self,
        source: &str,
    ) -> Result<(BTreeMap<SubnetId, Subnet>, BTreeSet<String>), Error> {
        let can = |s: &&Subnet| {
            s.local
                .imports
                .get(source)
                .is_some_and(|i| i.before.is_some())
        };
        if !self.state.subnets.values().any(|s| can(&s)) {
            let message = format!("there is nothing to roll back of {}", printable(source));
            return Err(Error::new(ErrorKind::NotFound, Code::Import, message)
                .hint("the last import of a file can be rolled back once"));
        }
        for subnet in self.state.subnets.values() {
            subnet.is_untouched(source)?;
        }
        let (mut copies, mut former) = self.without(source, []);
        let (me, now) = (self.state.me.clone(), self.now());
        let mut removed = BTreeSet::new();
        for id in copies.keys().copied().collect::<Vec<_>>() {
            let others = self.maps_but(id, &copies);
            let (Some(copy), Some(before)) = (copies.get_mut(&id), former.remove(&id)) else {
                continue;
            };
            copy.revert(&me, source, &before, &others, now)?;
            removed.extend(missing(&before, contents(copy, source)));
        }
        Ok((copies, removed))
    }

    /// What was taken away by hand is back, and what can be rolled back stays what it was.
    fn keep_step(&self, source: &str, copies: &mut BTreeMap<SubnetId, Subnet>) {
        for (id, copy) in copies {
            let known = self.state.subnets.get(id);
            let known = known.and_then(|s| s.local.imports.get(source));
            if let (Some(known), Some(import)) = (known, copy.local.imports.get_mut(source)) {
                import.before = known.before.clone();
            }
        }
    }

    /// Copies of the subnets that have something of a file, and of those `ids`, without it; and what they had.
    fn without(
        &self,
        source: &str,
        ids: impl IntoIterator<Item = SubnetId>,
    ) -> (BTreeMap<SubnetId, Subnet>, BTreeMap<SubnetId, Contents>) {
        let has = self
            .state
            .subnets
            .values()
            .filter(|s| s.local.imports.contains_key(source));
        let ids: BTreeSet<SubnetId> = has.map(|s| s.records.id).chain(ids).collect();
        let (mut copies, mut former) = (BTreeMap::new(), BTreeMap::new());
        for id in ids {
            let Some(mut copy) = self.state.subnets.get(&id).cloned() else {
                continue;
            };
            former.insert(id, copy.withdraw(source));
            copies.insert(id, copy);
        }
        (copies, former)
    }

    /// The maps of all other subnets here, as they are in the copies.
    fn maps_but(&self, but: SubnetId, copies: &BTreeMap<SubnetId, Subnet>) -> Vec<Map> {
        let others = self.state.subnets.iter().filter(|(id, _)| **id != but);
        let now = others.map(|(id, subnet)| copies.get(id).unwrap_or(subnet));
        now.flat_map(|s| s.local.maps.iter().cloned()).collect()
    }

    fn made<'a>(
        &self,
        source: &str,
        changed: bool,
        removed: BTreeSet<String>,
        copies: impl Iterator<Item = &'a Subnet> + Clone,
    ) -> Made {
        let maps = copies.clone().flat_map(|subnet| {
            let maps = contents(subnet, source).into_iter().flat_map(|c| &c.maps);
            maps.map(|map| (subnet.records.id, map.name.clone()))
        });
        Made {
            maps: maps.collect(),
            former: BTreeMap::new(),
            imported: Imported {
                source: source.to_owned(),
                changed,
                workloads: shown(copies, source),
                removed: removed.into_iter().collect(),
            },
        }
    }

    fn save_all(&mut self, copies: BTreeMap<SubnetId, Subnet>) -> Result<(), Error> {
        let mut draft = Draft::default();
        for copy in copies.into_values() {
            draft.put(copy);
        }
        self.commit(draft).map(drop)
    }
}
