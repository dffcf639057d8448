//! The resources of a VM: one table of what may be done to which path.
//!
//! The paths and their JSON are Firecracker's where it has them, so that its clients find their way. A
//! further resource is a line here and a function that works on the VM's handle.

use serde::de::DeserializeOwned;
use vmm::VmHandle;
use vmm::config::VmConfig;

use super::http::{Reply, Request};
use super::{balloon, drives, rates, vm};

/// What requests are about: a VM that runs.
#[derive(Debug)]
pub struct Target {
    /// The VM's control.
    pub handle: VmHandle,
    /// What the VM was made of.
    pub config: VmConfig,
}

/// A request on its way to the function that serves it.
#[derive(Debug)]
pub struct Call<'a> {
    /// The segment of the path at the route's `{}`.
    pub id: Option<&'a str>,
    body: &'a [u8],
}

impl Call<'_> {
    /// The body as what it should be.
    pub fn body<T: DeserializeOwned>(&self) -> Result<T, Fault> {
        serde_json::from_slice(self.body)
            .map_err(|error| Fault::bad(&format!("the body does not fit: {error}")))
    }
}

/// Why a request is not served.
#[derive(Debug, PartialEq, Eq)]
pub struct Fault {
    status: u16,
    message: String,
}

impl Fault {
    /// The request asks for something that cannot be.
    pub fn bad(message: &str) -> Self {
        Self {
            status: 400,
            message: message.to_owned(),
        }
    }

    /// It was tried, and the host has failed it.
    pub fn failed(message: &str) -> Self {
        Self {
            status: 500,
            message: message.to_owned(),
        }
    }

    /// This VM does not have what the request is about.
    pub fn absent(message: &str) -> Self {
        Self {
            status: 404,
            message: message.to_owned(),
        }
    }
}

/// A method, a path in which `{}` stands for any one segment, and what serves them.
pub type Route<T> = (
    &'static str,
    &'static str,
    fn(&T, &Call<'_>) -> Result<Reply, Fault>,
);

/// All there is.
pub const ROUTES: &[Route<Target>] = &[
    ("GET", "/", vm::info),
    ("GET", "/vm", vm::config),
    ("PATCH", "/vm", vm::change),
    ("GET", "/vm/config", vm::config),
    ("PUT", "/actions", vm::act),
    ("GET", "/balloon", balloon::show),
    ("PATCH", "/balloon", balloon::resize),
    ("GET", "/balloon/statistics", balloon::statistics),
    ("PATCH", "/balloon/statistics", balloon::set_interval),
    ("GET", "/drives/{}", drives::show),
    ("PATCH", "/drives/{}", drives::change),
    ("PUT", "/drives/{}/flush", drives::flush),
    ("GET", "/drives/{}/statistics", drives::statistics),
    ("GET", "/network-interfaces/{}", rates::show_card),
    ("PATCH", "/network-interfaces/{}", rates::change_card),
    ("GET", "/entropy", rates::show_entropy),
    ("PATCH", "/entropy", rates::change_entropy),
];

/// Serves a request by the table.
pub fn serve<T>(routes: &[Route<T>], target: &T, request: &Request) -> Reply {
    let path = request.path.as_str();
    let found: Vec<_> = routes
        .iter()
        .filter_map(|(method, pattern, action)| Some((*method, matches(pattern, path)?, action)))
        .collect();
    let Some((_, id, action)) = found.iter().find(|(method, ..)| *method == request.method) else {
        let methods: Vec<&str> = found.iter().map(|(method, ..)| *method).collect();
        return match methods.as_slice() {
            [] => Reply::fault(404, &format!("there is no {path}")),
            methods => {
                let message = format!("{path} knows only {}", methods.join(", "));
                Reply::not_allowed(&message, methods)
            }
        };
    };
    let call = Call {
        id: *id,
        body: &request.body,
    };
    match action(target, &call) {
        Ok(reply) => reply,
        Err(fault) => Reply::fault(fault.status, &fault.message),
    }
}

/// Whether a path is of this pattern, and what stands for its `{}`.
fn matches<'a>(pattern: &str, path: &'a str) -> Option<Option<&'a str>> {
    let mut id = None;
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return Some(id),
            (Some("{}"), Some(segment)) if !segment.is_empty() => id = Some(segment),
            (Some(one), Some(other)) if one == other => {}
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[Route<()>] = &[
        ("GET", "/", |(), _| Ok(Reply::done())),
        ("GET", "/things/{}", |(), call| Ok(Reply::show(call.id))),
        ("PATCH", "/things/{}", |(), call| {
            Ok(Reply::show(call.body::<u8>()?))
        }),
        ("PUT", "/things/{}/parts", |(), _| {
            Err(Fault::absent("no parts"))
        }),
    ];

    fn ask(method: &str, path: &str, body: &str) -> (u16, String) {
        let request = Request {
            method: method.to_owned(),
            path: path.to_owned(),
            body: body.into(),
            keep_alive: true,
        };
        let reply = serve(TABLE, &(), &request);
        let text = String::from_utf8(reply.to_bytes(true)).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        (reply.status(), body.trim().to_owned())
    }

    #[test]
    fn the_table_says_who_serves_what() {
        let fault = |message: &str| format!("{{\"fault_message\":\"{message}\"}}");
        for (method, path, body, status, reply) in [
            ("GET", "/", "", 204, String::new()),
            ("GET", "/things/a b", "", 200, "\"a b\"".to_owned()),
            ("PATCH", "/things/x", "7", 200, "7".to_owned()),
            ("PUT", "/things/x/parts", "", 404, fault("no parts")),
            ("GET", "/things", "", 404, fault("there is no /things")),
            ("GET", "/things/", "", 404, fault("there is no /things/")),
            (
                "GET",
                "/things/x/y",
                "",
                404,
                fault("there is no /things/x/y"),
            ),
            ("GET", "//", "", 404, fault("there is no //")),
            ("PUT", "/", "", 405, fault("/ knows only GET")),
            (
                "get",
                "/things/x",
                "",
                405,
                fault("/things/x knows only GET, PATCH"),
            ),
        ] {
            assert_eq!(ask(method, path, body), (status, reply), "{method} {path}");
        }
        let (status, message) = ask("PATCH", "/things/x", "{");
        assert_eq!(status, 400);
        assert!(message.contains("the body does not fit: "), "{message}");
    }

    #[test]
    fn no_route_is_there_twice() {
        for (at, (method, path, _)) in ROUTES.iter().enumerate() {
            let twice = |other: &&Route<Target>| (other.0, other.1) == (*method, *path);
            assert!(ROUTES[..at].iter().find(twice).is_none(), "{method} {path}");
        }
    }
}
