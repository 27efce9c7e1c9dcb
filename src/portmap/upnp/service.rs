//! A service of a device: found in its description, and asked in SOAP.

use std::fmt::Write as _;
use std::net::IpAddr;

use super::place::Place;
use super::xml;

/// Where a device takes the actions of one kind of service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::portmap) struct Service {
    /// Which one; a word of ours, and not of the device.
    kind: &'static str,
    place: Place,
}

/// Why an action was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::portmap) enum Fault {
    /// The device refuses, with an error of the service.
    Code(u16),
    /// There is no answer that makes sense, so that it may have done what it was asked.
    Lost,
}

/// What an action that was carried out has to say: names and values.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::portmap) struct Results(Vec<(String, String)>);

impl Results {
    /// The value of that name, where it is of that shape.
    pub(in crate::portmap) fn get<T: std::str::FromStr>(&self, name: &str) -> Option<T> {
        let (_, value) = self.0.iter().find(|(of, _)| of == name)?;
        value.parse().ok()
    }
}

impl Service {
    /// The first service of one of these kinds that the device at `page` describes, wherever that says it takes actions.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) async fn of(
        local: IpAddr,
        page: &Place,
        kinds: &[&'static str],
    ) -> Result<Service, String> {
        let description = page.get(local).await?;
        let found = described(&description, page, kinds)?;
        found.ok_or_else(|| "it has no such service".to_owned())
    }

    /// Who takes the actions.
    pub(super) fn host(&self) -> IpAddr {
        self.place.at.ip()
    }

    /// Has an action carried out. The values of `arguments` must need no escape, and stand in the service's own order: some
    /// devices take them by that.
    ///
    /// # Errors
    /// A refusal, or that nothing is known.
    pub(in crate::portmap) async fn act(
        &self,
        local: IpAddr,
        action: &str,
        arguments: &[(&str, String)],
    ) -> Result<Results, Fault> {
        let header = format!("\"{}#{action}\"", self.kind);
        let message = message(self.kind, action, arguments);
        let answer = self.place.post(local, &header, message).await;
        let outcome = match &answer {
            Ok(answer) => answered(answer, action),
            Err(why) => {
                tracing::debug!(why, action, "UPnP");
                return Err(Fault::Lost);
            }
        };
        match outcome {
            Ok(Ok(results)) => Ok(results),
            Ok(Err(fault)) => {
                tracing::debug!(?fault, action, "UPnP");
                Err(fault)
            }
            Err(why) => {
                tracing::debug!(why, action, "UPnP: no answer of SOAP");
                Err(Fault::Lost)
            }
        }
    }

    #[cfg(test)]
    /// One at that place.
    pub(in crate::portmap) fn at(kind: &'static str, url: &str) -> Service {
        let place = Place::read(url, 0).unwrap();
        Service { kind, place }
    }
}

/// Finds the first service of these kinds in a description.
pub(super) fn described(
    description: &[u8],
    page: &Place,
    kinds: &[&'static str],
) -> Result<Option<Service>, &'static str> {
    let (mut base, mut found) = (String::new(), None);
    let (mut kind, mut control) = (None, String::new());
    xml::read(description, |path, inside| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path[..] {
            ["root", "URLBase"] => base = inside.to_owned(),
            [.., "service", "serviceType"] => {
                kind = kinds.iter().find(|kind| **kind == inside).copied();
            }
            [.., "service", "controlURL"] => control = inside.to_owned(),
            [.., "service"] => {
                let control = std::mem::take(&mut control);
                if let Some(kind) = kind.take()
                    && found.is_none()
                    && !control.is_empty()
                {
                    found = Some((kind, control));
                }
            }
            _ => {}
        }
    })?;
    let base = match base.as_str() {
        "" => Some(page.clone()),
        base => page.beside(base),
    };
    Ok(found.and_then(|(kind, control)| {
        let place = base?.beside(&control)?;
        Some(Service { kind, place })
    }))
}

fn message(kind: &str, action: &str, arguments: &[(&str, String)]) -> String {
    let mut message = format!(
        "<?xml version=\"1.0\"?>\r\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\" \
         s:encodingStyle=\"http://schemas.xmlsoap.org/soap/encoding/\"><s:Body><u:{action} xmlns:u=\"{kind}\">"
    );
    for (name, value) in arguments {
        // Text takes whatever is written.
        let _ = write!(message, "<{name}>{value}</{name}>");
    }
    let _ = write!(message, "</u:{action}></s:Body></s:Envelope>\r\n");
    message
}

/// Reads the answer to an action.
pub(super) fn answered(
    answer: &[u8],
    action: &str,
) -> Result<Result<Results, Fault>, &'static str> {
    let response = format!("{action}Response");
    let (mut results, mut is_done, mut code) = (Results::default(), false, None);
    xml::read(answer, |path, inside| {
        let path: Vec<&str> = path.iter().map(String::as_str).collect();
        match path[..] {
            [_, "Body", done] => is_done |= done == response,
            [_, "Body", done, name] if done == response => {
                results.0.push((name.to_owned(), inside.to_owned()));
            }
            [_, "Body", "Fault", .., "errorCode"] => code = code.or(inside.parse().ok()),
            _ => {}
        }
    })?;
    match (is_done, code) {
        (_, Some(code)) => Ok(Err(Fault::Code(code))),
        (true, None) => Ok(Ok(results)),
        (false, None) => Err("it is no answer to the action"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: &[&str] = &["urn:x:Here:1", "urn:x:Here:2"];

    fn page() -> Place {
        Place::read("http://192.0.2.1:5000/root.xml", 0).unwrap()
    }

    /// Where the service is that such a description has.
    fn found(inside: &str) -> Option<Service> {
        let text = format!(
            "<?xml version=\"1.0\"?><root xmlns=\"urn:schemas-upnp-org:device-1-0\">{inside}</root>"
        );
        described(text.as_bytes(), &page(), KINDS).unwrap()
    }

    fn service(kind: &str, control: &str) -> String {
        format!(
            "<service><serviceType>{kind}</serviceType><serviceId>x</serviceId><controlURL>{control}</controlURL></service>"
        )
    }

    #[test]
    fn the_first_service_of_the_kinds_is_found_however_deep_it_is() {
        let device = |services: &str, inside: &str| {
            format!(
                "<device><serviceList>{services}</serviceList><deviceList>{inside}</deviceList></device>"
            )
        };
        let inner = device(
            &(service("urn:x:Here:2", "\r\n /ctl?a&amp;b ") + &service("urn:x:Here:1", "/other")),
            "",
        );
        let outer = device(&service("urn:x:There:1", "/no"), &inner);
        let right = Service::at("urn:x:Here:2", "http://192.0.2.1:5000/ctl?a&b");
        assert_eq!(found(&outer), Some(right));
        // Its parts in another order, and one that says nothing of where it is before it.
        let turned =
            "<service><controlURL>/c</controlURL><serviceType>urn:x:Here:1</serviceType></service>";
        let right = Some(Service::at("urn:x:Here:1", "http://192.0.2.1:5000/c"));
        assert_eq!(found(turned), right);
        let without = "<service><serviceType>urn:x:Here:1</serviceType></service>";
        assert_eq!(found(&format!("{without}{turned}")), right);
        assert_eq!(found(without), None);
        // The place of one service is not the place of the next one.
        assert_eq!(
            found(&format!("{}{without}", service("urn:x:There:1", "/no"))),
            None
        );
        assert_eq!(found(&service("urn:x:Here:11", "/no")), None);
    }

    #[test]
    fn a_base_says_where_paths_of_the_description_begin() {
        let based = |base: &str, control: &str| {
            let of = format!(
                "<URLBase>{base}</URLBase>{}",
                service("urn:x:Here:1", control)
            );
            found(&of)
        };
        let right = |url| Some(Service::at("urn:x:Here:1", url));
        let base = "http://192.0.2.1:81/dir/";
        assert_eq!(based(base, "c"), right("http://192.0.2.1:81/dir/c"));
        assert_eq!(based(base, "/c"), right("http://192.0.2.1:81/c"));
        assert_eq!(based("", "/c"), right("http://192.0.2.1:5000/c"));
        assert_eq!(based("http://router.example/", "/c"), None);
        // Whose it is, is asked by who knows the router.
        let elsewhere = based("http://192.0.2.9/", "/c").unwrap();
        assert_eq!(elsewhere.host().to_string(), "192.0.2.9");
    }

    fn envelope(body: &str) -> String {
        format!(
            "<?xml version=\"1.0\"?>\n<s:Envelope xmlns:s=\"http://schemas.xmlsoap.org/soap/envelope/\"><s:Body>{body}</s:Body>\
             </s:Envelope>"
        )
    }

    #[test]
    fn an_answer_is_results_a_refusal_or_nothing() {
        let of = |body: &str| answered(envelope(body).as_bytes(), "Add");
        let done = of("<u:AddResponse xmlns:u=\"x\"><A> 17</A><B>x</B><C/></u:AddResponse>");
        let results = done.unwrap().unwrap();
        assert_eq!(results.get::<u16>("A"), Some(17));
        assert_eq!(results.get::<u16>("B"), None);
        assert_eq!(results.get::<String>("C"), Some(String::new()));
        assert_eq!(results.get::<String>("D"), None);
        assert_eq!(of("<AddResponse/>"), Ok(Ok(Results::default())));
        let refused = "<s:Fault><faultcode>s:Client</faultcode><detail><UPnPError><errorCode>718</errorCode></UPnPError></detail></s:Fault>";
        assert_eq!(of(refused), Ok(Err(Fault::Code(718))));
        for nothing in [
            "",
            "<u:RemoveResponse/>",
            "<x><AddResponse/></x>",
            "<s:Fault/>",
            "<s:Fault><errorCode>-1</errorCode></s:Fault>",
            "<s:Fault><errorCode>70000</errorCode></s:Fault>",
            "<errorCode>718</errorCode>",
        ] {
            of(nothing).unwrap_err();
        }
        answered(b"<html>No</html>", "Add").unwrap_err();
        answered(b"", "Add").unwrap_err();
    }

    #[test]
    fn a_message_is_read_as_it_was_meant() {
        let message = message(
            "urn:x",
            "Add",
            &[("A", "1".to_owned()), ("B", String::new())],
        );
        let mut said = Vec::new();
        xml::read(message.as_bytes(), |path, inside| {
            said.push(format!("{}={inside}", path.join("/")));
        })
        .unwrap();
        assert_eq!(
            said,
            [
                "Envelope/Body/Add/A=1",
                "Envelope/Body/Add/B=",
                "Envelope/Body/Add=",
                "Envelope/Body=",
                "Envelope="
            ]
        );
        assert!(message.contains("<u:Add xmlns:u=\"urn:x\">"));
    }
}
