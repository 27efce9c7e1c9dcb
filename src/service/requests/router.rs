//! Which handler answers which kind of request.
//!
//! Built once, at the start: a kind has one handler, and a second one for it is a mistake of the program.

use std::collections::BTreeMap;

/// A kind of request, with its handler, its cost and its bounds.
#[derive(Debug)]
pub struct Method<H> {
    /// The name that people and metrics know it by.
    pub name: &'static str,
    /// What one request takes of its sender's bucket, beside one unit for each 64 KiB of its body.
    pub cost: u64,
    /// Largest body that is taken, in bytes.
    pub most: usize,
    /// The handler that answers it.
    pub handler: H,
}

/// Two handlers were given for one kind.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("two services answer requests of kind {kind}: {first} and {second}")]
pub struct KindTaken {
    /// The kind that both would answer.
    pub kind: u16,
    /// Name of the method that has it.
    pub first: &'static str,
    /// Name of the method that came second.
    pub second: &'static str,
}

/// The methods, by the kinds of request they answer.
#[derive(Debug)]
pub struct Router<H>(BTreeMap<u16, Method<H>>);

impl<H> Default for Router<H> {
    fn default() -> Self {
        Router(BTreeMap::new())
    }
}

impl<H> Router<H> {
    /// Adds the handler of a kind.
    ///
    /// # Errors
    /// [`KindTaken`] where the kind has one.
    pub fn add(&mut self, kind: u16, route: Method<H>) -> Result<(), KindTaken> {
        if let Some(first) = self.0.get(&kind) {
            return Err(KindTaken {
                kind,
                first: first.name,
                second: route.name,
            });
        }
        self.0.insert(kind, route);
        Ok(())
    }

    /// How a kind is answered; `None` for one that nobody here knows.
    pub fn route(&self, kind: u16) -> Option<&Method<H>> {
        self.0.get(&kind)
    }

    /// The kinds, each with its name.
    pub fn names(&self) -> impl Iterator<Item = (u16, &'static str)> {
        self.0.iter().map(|(kind, route)| (*kind, route.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_handler_of_a_kind_is_an_error() {
        let mut router = Router::default();
        let route = |name, handler| Method {
            name,
            cost: 1,
            most: 0,
            handler,
        };
        assert_eq!(router.add(1, route("ping", 'a')), Ok(()));
        assert_eq!(router.add(2, route("clock", 'b')), Ok(()));
        let taken = router.add(1, route("echo", 'c')).unwrap_err();
        assert_eq!(
            taken,
            KindTaken {
                kind: 1,
                first: "ping",
                second: "echo"
            }
        );
        assert_eq!(
            router.route(1).map(|r| r.handler),
            Some('a'),
            "the first one stays"
        );
        assert!(router.route(3).is_none());
        assert_eq!(
            router.names().collect::<Vec<_>>(),
            [(1, "ping"), (2, "clock")]
        );
    }
}
