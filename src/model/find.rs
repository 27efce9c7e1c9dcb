//! What a person means by a text: one rule for members, requests, subnets, workloads, peers and invites.
//!
//! The full ID is tried first, then the whole name, then a prefix of an ID of at least [`PREFIX`] characters. An ending of an
//! ID finds nothing: whoever makes keys chooses the ending of an ID within minutes. A text that fits more than one object
//! finds none of them, so that nobody can take a name or make a key that is mistaken for another's; only a full ID that is
//! a key or a hash cannot be made ambiguous, since no other object can bear it.
//!
//! Pure: the caller lists what there is.

use super::error::{Code, Error, Hint, Kind};
use super::id::{PeerId, SubnetId};

/// Characters of an ID that a person has to type at least. Those that all IDs of a kind begin with do not count.
pub const PREFIX: usize = 8;

/// What the text of every peer ID begins with.
const PEER_HEAD: &str = "12D3KooW";

/// An ID as text, and how much of it says nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Id {
    text: String,
    /// How many bytes all IDs of the kind have in common.
    common: usize,
    /// Whether the text's case does not matter.
    folds: bool,
}

impl Id {
    /// An ID without a common beginning, whose case matters.
    pub fn plain(text: impl Into<String>) -> Id {
        Id {
            text: text.into(),
            common: 0,
            folds: false,
        }
    }

    /// Whether `text` is the whole ID.
    fn is(&self, text: &str) -> bool {
        if self.folds {
            self.text.eq_ignore_ascii_case(text)
        } else {
            self.text == text
        }
    }

    /// Whether `text` is a prefix of the ID that is long enough. What all IDs begin with may be left out.
    fn begins_with(&self, text: &str) -> bool {
        let head = |id: &str, least: usize| {
            let start = id.get(..text.len());
            text.len() >= least
                && start.is_some_and(|s| {
                    if self.folds {
                        s.eq_ignore_ascii_case(text)
                    } else {
                        s == text
                    }
                })
        };
        head(&self.text, self.common.saturating_add(PREFIX))
            || self
                .text
                .get(self.common..)
                .is_some_and(|rest| head(rest, PREFIX))
    }

    /// The shortest prefix of at least [`PREFIX`] characters that none of `others` begins with. The ID itself may be among
    /// them.
    pub fn prefix(&self, others: &[Id]) -> String {
        let same = |other: &Id| {
            self.text
                .bytes()
                .zip(other.text.bytes())
                .take_while(|(a, b)| a == b)
                .count()
        };
        let rivals = others.iter().filter(|other| other.text != self.text);
        let unlike = rivals
            .map(|other| same(other).saturating_add(1))
            .max()
            .unwrap_or(0);
        let length = unlike.max(self.common.saturating_add(PREFIX));
        self.text.get(..length).unwrap_or(&self.text).to_owned()
    }
}

impl From<PeerId> for Id {
    fn from(peer: PeerId) -> Id {
        Id {
            text: peer.to_string(),
            common: PEER_HEAD.len(),
            folds: false,
        }
    }
}

impl From<SubnetId> for Id {
    fn from(subnet: SubnetId) -> Id {
        Id {
            text: subnet.to_string(),
            common: 0,
            folds: true,
        }
    }
}

/// One object that may be meant.
#[derive(Debug, Clone)]
pub struct Named<T> {
    /// The object itself, handed back where it is the one meant.
    pub what: T,
    /// Its ID; none for what has only names.
    pub id: Option<Id>,
    /// Its names; their case does not matter.
    pub names: Vec<String>,
}

impl<T> Named<T> {
    /// An object with an ID and one name.
    pub fn new(what: T, id: impl Into<Id>, name: impl ToString) -> Named<T> {
        Named {
            what,
            id: Some(id.into()),
            names: vec![name.to_string()],
        }
    }

    fn is_called(&self, text: &str) -> bool {
        self.names
            .iter()
            .any(|name| name.eq_ignore_ascii_case(text))
    }

    /// How the object is told from the others in an error: its first name and a prefix of its ID.
    fn label(&self, others: &[Id]) -> String {
        match (self.names.first(), &self.id) {
            (Some(name), Some(id)) => format!("{name} ({})", id.prefix(others)),
            (Some(name), None) => name.clone(),
            (None, Some(id)) => id.prefix(others),
            (None, None) => "one without a name".to_owned(),
        }
    }
}

/// Why nothing was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// No object has such a name or ID.
    None,
    /// Several objects are; each by name and ID, at most eight of them.
    Many(Vec<String>),
}

/// The one object that `text` means.
///
/// # Errors
/// [`Miss`] where it means none, or more than one.
pub fn find<T: Clone + PartialEq>(objects: &[Named<T>], text: &str) -> Result<T, Miss> {
    let is_whole = |o: &Named<T>| o.id.as_ref().is_some_and(|id| id.is(text));
    // Several may have one ID: a container is attached once for each of its interfaces.
    let whole = objects.iter().any(is_whole);
    let fits =
        |o: &Named<T>| o.is_called(text) || o.id.as_ref().is_some_and(|id| id.begins_with(text));
    let mut found: Vec<&Named<T>> = Vec::new();
    for object in objects
        .iter()
        .filter(|o| if whole { is_whole(o) } else { fits(o) })
    {
        // One object may be listed twice, once for each place it is known from.
        if !found.iter().any(|f| f.what == object.what) {
            found.push(object);
        }
    }
    match found.as_slice() {
        [] => Err(Miss::None),
        [one] => Ok(one.what.clone()),
        many => {
            let ids: Vec<Id> = objects.iter().filter_map(|o| o.id.clone()).collect();
            Err(Miss::Many(
                many.iter().take(8).map(|o| o.label(&ids)).collect(),
            ))
        }
    }
}

/// The refusal of a text that may mean several objects, each with its label.
pub fn ambiguous(text: &str, labels: &[String]) -> Error {
    let message = format!(
        "{} may mean {}",
        super::members::printable(text),
        labels.join(" or ")
    );
    Error::new(Kind::Usage, Code::Ambiguous, message).hint(Hint::TypeMore)
}

impl Miss {
    /// The error of a text that means several objects; `none` makes the one of a text that means nothing.
    pub fn error(self, text: &str, none: impl FnOnce() -> Error) -> Error {
        match self {
            Miss::None => none(),
            Miss::Many(labels) => ambiguous(text, &labels),
        }
    }
}

/// Prefixes of peer IDs to print, each long enough to be typed and to tell the peers of the list apart.
pub fn peer_prefixes(peers: impl IntoIterator<Item = PeerId>) -> Vec<String> {
    let ids: Vec<Id> = peers.into_iter().map(Id::from).collect();
    // Neighbours in order are those that are most alike.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|at| ids.get(*at).map(|id| id.text.as_str()));
    let sorted: Vec<&Id> = order.iter().filter_map(|at| ids.get(*at)).collect();
    let mut out = vec![String::new(); ids.len()];
    for (place, at) in order.iter().enumerate() {
        let Some(id) = ids.get(*at) else { continue };
        let unlike = |other: &&&Id| other.text != id.text;
        let before = sorted
            .get(..place)
            .unwrap_or_default()
            .iter()
            .rev()
            .find(unlike);
        let after = sorted.get(place..).unwrap_or_default().iter().find(unlike);
        let near: Vec<Id> = before
            .into_iter()
            .chain(after)
            .map(|id| (*id).clone())
            .collect();
        if let Some(slot) = out.get_mut(*at) {
            *slot = id.prefix(&near);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn peer(n: u8) -> PeerId {
        PeerId([n; 32])
    }

    fn people() -> Vec<Named<u8>> {
        vec![
            Named::new(1, peer(1), "anna"),
            Named::new(2, peer(2), "printer"),
            Named::new(3, peer(3), "c"),
        ]
    }

    #[test]
    fn the_whole_id_comes_before_names_and_names_before_prefixes() {
        let (one, two) = (peer(1).to_string(), peer(2).to_string());
        assert_eq!(find(&people(), &one), Ok(1));
        assert_eq!(find(&people(), "ANNA"), Ok(1));
        assert_eq!(find(&people(), &two[..16]), Ok(2));
        assert_eq!(
            find(&people(), &two[8..16]),
            Ok(2),
            "what all begin with may be left out"
        );
        assert_eq!(find(&people(), &two[8..30]), Ok(2));
        // Somebody called like another's whole ID is not mistaken for it.
        let mut all = people();
        all.push(Named::new(4, peer(4), one.to_ascii_lowercase()));
        assert_eq!(find(&all, &one), Ok(1));
    }

    #[test]
    fn a_whole_id_that_several_have_means_none_of_them_alone() {
        let object = |what, id: &str, name| Named {
            what,
            id: Some(Id::plain(id)),
            names: vec![name],
        };
        let id = "0123456789abcdef";
        let all = [
            object(1, id, "web".into()),
            object(2, id, "web-2".into()),
            object(3, "0123456789abcdee", id.into()),
        ];
        assert!(
            matches!(find(&all, id), Err(Miss::Many(who)) if who.len() == 2),
            "nor another's name"
        );
        assert_eq!(find(&all[1..], id), Ok(2));
    }

    #[test]
    fn endings_and_short_prefixes_find_nothing() {
        let id = peer(1).to_string();
        for text in [
            &id[44..],
            &id[id.len() - 4..],
            &id[1..],
            &id[..15],
            &id[8..15],
            &id[..8],
            "12D3KooW",
            "",
            "1",
        ] {
            assert_eq!(find(&people(), text), Err(Miss::None), "{text:?}");
        }
    }

    #[test]
    fn a_key_that_was_made_to_end_with_a_name_is_not_that_name() {
        // The peer ID ends with "anna".
        let ground: PeerId = "12D3KooWRtubMQkmrjdgVrmhQfGHWuuCGPGowi2DbM8i7wUqanna"
            .parse()
            .unwrap();
        let all = [
            Named::new(1, ground, "printer"),
            Named::new(2, peer(2), "anna"),
        ];
        assert_eq!(find(&all, "anna"), Ok(2));
    }

    #[test]
    fn what_fits_two_is_refused() {
        let begins = peer(1).to_string()[8..17].to_ascii_lowercase();
        let mut all = people();
        all.push(Named::new(4, peer(4), "anna"));
        assert!(
            matches!(find(&all, "anna"), Err(Miss::Many(labels)) if labels.len() == 2),
            "two of one name"
        );
        let subnets = [
            Named::new(1, SubnetId([7; 16]), "lab"),
            Named::new(2, SubnetId([9; 16]), &SubnetId([7; 16]).to_string()[..8]),
        ];
        let text = &SubnetId([7; 16]).to_string()[..8];
        assert!(
            matches!(find(&subnets, text), Err(Miss::Many(_))),
            "a name that is another's prefix"
        );
        assert_eq!(
            find(
                &subnets,
                &SubnetId([7; 16]).to_string().to_ascii_uppercase()
            ),
            Ok(1),
            "input folds case"
        );
        assert_eq!(
            find(&people(), &begins),
            Err(Miss::None),
            "the case of a peer ID matters"
        );
        // The same object, known from two places.
        let mut twice = people();
        twice.push(Named::new(1, peer(1), "anna"));
        assert_eq!(find(&twice, "anna"), Ok(1));
    }

    proptest! {
        #[test]
        fn what_is_printed_can_be_typed(keys in proptest::collection::btree_set(any::<[u8; 32]>(), 1..12)) {
            let peers: Vec<PeerId> = keys.into_iter().map(PeerId).collect();
            let objects: Vec<Named<PeerId>> = peers.iter().map(|p| Named::new(*p, *p, "name")).collect();
            for (peer, prefix) in peers.iter().zip(peer_prefixes(peers.iter().copied())) {
                prop_assert!(prefix.len() >= 16);
                prop_assert_eq!(find(&objects, &prefix), Ok(*peer));
            }
        }

        #[test]
        fn finding_never_panics(text in ".{0,70}") {
            let _ = find(&people(), &text);
        }
    }
}
