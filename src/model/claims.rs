//! Which members' announcements say which name, whether they may or not: an index that follows the announcements.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::chunks::Chunks;
use super::id::PeerId;
use super::record::Announcement;

/// The members that say a name. The names are kept with their labels reversed, so that all names
/// below one stand together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Claims(Chunks<Arc<str>, Arc<[PeerId]>>);

/// The names an announcement claims; none where its member left.
pub(super) fn claimed(announcement: &Announcement) -> BTreeSet<&str> {
    let workloads = announcement.workloads.iter().map(|w| w.name.as_str());
    let names = workloads.chain(announcement.names.iter().map(|n| n.name.as_str()));
    if announcement.left.is_some() {
        BTreeSet::new()
    } else {
        names.collect()
    }
}

/// The name with its labels in reverse order: `a.b.c` becomes `c.b.a`.
fn turned(name: &str) -> Cow<'_, str> {
    if name.contains('.') {
        name.rsplit('.').collect::<Vec<_>>().join(".").into()
    } else {
        name.into()
    }
}

impl Claims {
    /// Follows a member's announcement that has changed or is gone.
    pub(super) fn change(
        &mut self,
        by: PeerId,
        old: Option<&Announcement>,
        new: Option<&Announcement>,
    ) {
        let (old, new) = (
            old.map(claimed).unwrap_or_default(),
            new.map(claimed).unwrap_or_default(),
        );
        for name in old.difference(&new) {
            let rest: Arc<[PeerId]> = self.of(name).iter().copied().filter(|p| *p != by).collect();
            let key = turned(name);
            if rest.is_empty() {
                self.0.remove(key.as_ref());
            } else {
                self.0.insert(key.into(), rest);
            }
        }
        for name in new.difference(&old) {
            let all: BTreeSet<PeerId> = self.of(name).iter().copied().chain([by]).collect();
            self.0
                .insert(turned(name).into(), all.into_iter().collect());
        }
    }

    /// The members whose announcements say a name, by key.
    pub(super) fn of(&self, name: &str) -> &[PeerId] {
        self.0
            .get(turned(name).as_ref())
            .map(AsRef::as_ref)
            .unwrap_or_default()
    }

    /// Names that are `label`, or end with it.
    pub(super) fn at_or_below(&self, label: &str) -> impl Iterator<Item = Arc<str>> {
        let own = self.0.get(label).map(|_| Arc::from(label));
        let head = format!("{label}.");
        let below: Vec<Arc<str>> = (self.0.from(head.as_str()).map(|(name, _)| name))
            .take_while(|name| name.starts_with(&head))
            .map(|name| turned(name).into())
            .collect();
        own.into_iter().chain(below)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::record::NameEntry;
    use crate::model::zone::RecordData;

    fn announcement(names: &[&str]) -> Announcement {
        let entry = |name: &&str| NameEntry {
            name: (*name).to_owned(),
            data: RecordData::Txt("x".into()),
            ttl: 5,
        };
        Announcement {
            names: names.iter().map(entry).collect(),
            ..Announcement::default()
        }
    }

    #[test]
    fn the_index_follows_the_announcements() {
        let (mut claims, a, b) = (Claims::default(), PeerId([1; 32]), PeerId([2; 32]));
        let (first, second) = (
            announcement(&["web", "db.m3", "m3-x", "x.y.m3"]),
            announcement(&["web", "m3"]),
        );
        claims.change(b, None, Some(&second));
        claims.change(a, None, Some(&first));
        assert_eq!(claims.of("web"), [a, b]);
        assert_eq!(claims.of("db"), []);
        let below: BTreeSet<Arc<str>> = claims.at_or_below("m3").collect();
        assert_eq!(below, ["db.m3", "m3", "x.y.m3"].map(Arc::from).into());
        claims.change(a, Some(&first), Some(&announcement(&["db.m3"])));
        assert_eq!((claims.of("web"), claims.of("db.m3")), (&[b][..], &[a][..]));
        claims.change(
            a,
            Some(&announcement(&["db.m3"])),
            Some(&Announcement {
                left: Some(1),
                ..announcement(&["db.m3"])
            }),
        );
        claims.change(b, Some(&second), None);
        assert_eq!(claims, Claims::default());
    }
}
