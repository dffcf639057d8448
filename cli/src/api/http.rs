//! HTTP/1.1 as far as a control socket needs it, RFC 9112: small requests in, JSON out. Pure.

use serde::Serialize;
use serde_json::{Value, json};

/// Most bytes of a request's first line and header fields.
pub const MAX_HEAD: usize = 8 << 10;
/// Most bytes of its body.
pub const MAX_BODY: usize = 64 << 10;
/// Most header fields.
const MAX_FIELDS: usize = 64;

/// A request that has arrived as a whole.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    /// In upper case, as clients write it.
    pub method: String,
    /// Without a query.
    pub path: String,
    /// What it carries.
    pub body: Vec<u8>,
    /// Whether the client may send another through the same connection.
    pub keep_alive: bool,
}

/// What a client's bytes are so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// A part of a request. The client may be waiting for a nod before it sends the rest.
    Part {
        /// It is: RFC 9110 §10.1.1, `Expect: 100-continue`.
        waits: bool,
    },
    /// A request, and how many bytes it was.
    Whole(Request, usize),
}

/// What a client is answered.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    status: u16,
    body: Option<Value>,
    /// The methods that there are, with status 405.
    allow: Option<String>,
}

impl Reply {
    /// It is done, and there is nothing to show.
    pub fn done() -> Self {
        Self {
            status: 204,
            body: None,
            allow: None,
        }
    }

    /// What was asked for.
    pub fn show(value: impl Serialize) -> Self {
        match serde_json::to_value(value) {
            Ok(value) => Self {
                status: 200,
                body: Some(value),
                allow: None,
            },
            Err(error) => Self::fault(500, &error.to_string()),
        }
    }

    /// It cannot be done, and why: in the form that Firecracker's clients read.
    pub fn fault(status: u16, message: &str) -> Self {
        Self {
            status,
            body: Some(json!({ "fault_message": message })),
            allow: None,
        }
    }

    /// There is such a path, but only for `methods`.
    pub fn not_allowed(message: &str, methods: &[&str]) -> Self {
        Self {
            allow: Some(methods.join(", ")),
            ..Self::fault(405, message)
        }
    }

    /// For the log.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The bytes to send.
    pub fn to_bytes(&self, keep_alive: bool) -> Vec<u8> {
        let mut head = format!(
            "HTTP/1.1 {} {}\r\nServer: mvm/{}\r\n",
            self.status,
            reason(self.status),
            env!("CARGO_PKG_VERSION"),
        );
        if let Some(methods) = &self.allow {
            head.push_str(&format!("Allow: {methods}\r\n"));
        }
        if !keep_alive {
            head.push_str("Connection: close\r\n");
        }
        match &self.body {
            Some(body) => {
                let body = format!("{body}\n");
                let len = body.len();
                head.push_str(&format!(
                    "Content-Type: application/json\r\nContent-Length: {len}\r\n\r\n{body}"
                ));
            }
            // RFC 9110 §8.6: none with 204.
            None => head.push_str("\r\n"),
        }
        head.into_bytes()
    }
}

/// The nod that a client with a larger body may wait for.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        _ => "Unknown",
    }
}

/// Reads the request that `bytes` begin with. Where it cannot be one, the reply says why, and the
/// connection is of no more use.
pub fn read(bytes: &[u8]) -> Result<Read, Reply> {
    let mut fields = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let mut head = httparse::Request::new(&mut fields);
    let head_len = match head.parse(bytes) {
        Ok(httparse::Status::Complete(len)) if len <= MAX_HEAD => len,
        Ok(httparse::Status::Partial) if bytes.len() < MAX_HEAD => {
            return Ok(Read::Part { waits: false });
        }
        Ok(_) | Err(httparse::Error::TooManyHeaders) => {
            return Err(Reply::fault(431, "the request's header is too long"));
        }
        Err(error) => {
            return Err(Reply::fault(400, &format!("this is not HTTP: {error}")));
        }
    };
    let (Some(method), Some(target), Some(version)) = (head.method, head.path, head.version) else {
        return Err(Reply::fault(400, "this is not HTTP"));
    };
    let framing = Framing::of(head.headers, version)?;
    let whole = head_len + framing.body;
    let Some(body) = bytes.get(head_len..whole) else {
        let waits = framing.waits && bytes.len() == head_len;
        return Ok(Read::Part { waits });
    };
    let path = target.split('?').next().unwrap_or_default();
    if !path.starts_with('/') {
        return Err(Reply::fault(400, "the path must begin with a slash"));
    }
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        body: body.to_owned(),
        keep_alive: framing.keep_alive,
    };
    Ok(Read::Whole(request, whole))
}

/// What the header fields say of the request's end, and of what comes after it.
struct Framing {
    body: usize,
    keep_alive: bool,
    waits: bool,
}

impl Framing {
    fn of(fields: &[httparse::Header<'_>], version: u8) -> Result<Self, Reply> {
        let bad = |message| Reply::fault(400, message);
        let mut framing = Self {
            body: 0,
            // RFC 9112 §9.3.
            keep_alive: version == 1,
            waits: false,
        };
        let mut length = None;
        for field in fields {
            let value = str::from_utf8(field.value).unwrap_or_default().trim();
            let named = |name: &str| field.name.eq_ignore_ascii_case(name);
            if named("content-length") {
                // RFC 9110 §8.6: digits only, so no sign.
                let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
                if !digits || length.is_some_and(|length| length != value) {
                    return Err(bad("the Content-Length is not a length"));
                }
                length = Some(value);
            } else if named("transfer-encoding") {
                let message =
                    "a body must come with a Content-Length, not with a Transfer-Encoding";
                return Err(Reply::fault(501, message));
            } else if named("connection") {
                let close = |word: &str| word.trim().eq_ignore_ascii_case("close");
                framing.keep_alive &= !value.split(',').any(close);
            } else if named("expect") {
                framing.waits = value.eq_ignore_ascii_case("100-continue");
            }
        }
        if let Some(length) = length {
            framing.body = length
                .parse()
                .ok()
                .filter(|length| *length <= MAX_BODY)
                .ok_or_else(|| {
                    Reply::fault(413, &format!("a body has at most {MAX_BODY} bytes"))
                })?;
        }
        Ok(framing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> (Request, usize) {
        match read(text.as_bytes()) {
            Ok(Read::Whole(request, len)) => (request, len),
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> (u16, String) {
        let reply = read(text.as_bytes()).expect_err(text);
        let message = reply.body.unwrap()["fault_message"].to_string();
        (reply.status, message)
    }

    #[test]
    fn a_request_is_read_once_it_is_whole() {
        let text =
            "PATCH /balloon?x=1 HTTP/1.1\r\nHost: localhost\r\ncontent-LENGTH: 4\r\n\r\nbodyGET";
        for len in 0..text.len() - 3 {
            assert_eq!(
                read(&text.as_bytes()[..len]),
                Ok(Read::Part { waits: false }),
                "{len}"
            );
        }
        let (request, len) = whole(text);
        assert_eq!(&text[len..], "GET");
        let expected = Request {
            method: "PATCH".to_owned(),
            path: "/balloon".to_owned(),
            body: b"body".to_vec(),
            keep_alive: true,
        };
        assert_eq!(request, expected);
    }

    #[test]
    fn the_connection_goes_on_unless_somebody_says_otherwise() {
        for (text, keep_alive) in [
            ("GET / HTTP/1.1\r\n\r\n", true),
            (
                "GET / HTTP/1.1\r\nConnection: keep-alive, Close\r\n\r\n",
                false,
            ),
            ("GET / HTTP/1.0\r\n\r\n", false),
        ] {
            assert_eq!(whole(text).0.keep_alive, keep_alive, "{text}");
        }
    }

    #[test]
    fn a_client_that_waits_for_a_nod_is_noticed() {
        let head = "PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
        assert_eq!(read(head.as_bytes()), Ok(Read::Part { waits: true }));
        let more = format!("{head}x");
        assert_eq!(read(more.as_bytes()), Ok(Read::Part { waits: false }));
    }

    #[test]
    fn what_is_too_much_or_no_request_is_refused() {
        let long = "x".repeat(MAX_HEAD);
        let many = "A: b\r\n".repeat(MAX_FIELDS + 1);
        let field = |field: &str| format!("PUT / HTTP/1.1\r\n{field}\r\n\r\n");
        for (text, status, words) in [
            (format!("GET /{long}"), 431, "too long"),
            (format!("GET /{long} HTTP/1.1\r\n\r\n"), 431, "too long"),
            (format!("GET / HTTP/1.1\r\n{many}\r\n"), 431, "too long"),
            ("\0\0".to_owned(), 400, "not HTTP"),
            ("GET / HTTP/3.0\r\n\r\n".to_owned(), 400, "not HTTP"),
            ("GET x HTTP/1.1\r\n\r\n".to_owned(), 400, "slash"),
            (field("Content-Length: -1"), 400, "not a length"),
            (field("Content-Length: +1"), 400, "not a length"),
            (field("Content-Length:"), 400, "not a length"),
            (
                field("Content-Length: 1\r\nContent-Length: 2"),
                400,
                "not a length",
            ),
            (field("Content-Length: 65537"), 413, "65536"),
            (
                field("Content-Length: 99999999999999999999999"),
                413,
                "65536",
            ),
            (field("Transfer-Encoding: chunked"), 501, "Content-Length"),
        ] {
            let (got, message) = refused(&text);
            assert_eq!(got, status, "{message}");
            assert!(message.contains(words), "{message}");
        }
        assert!(read(field(&format!("Content-Length: {MAX_BODY}")).as_bytes()).is_ok());
    }

    #[test]
    fn replies_say_how_long_they_are() {
        let text =
            |reply: Reply, keep_alive| String::from_utf8(reply.to_bytes(keep_alive)).unwrap();
        let shown = text(Reply::show(json!({ "a": 1 })), true);
        let (head, body) = shown.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.ends_with("Content-Length: 8"), "{head}");
        assert_eq!(body, "{\"a\":1}\n");
        let done = text(Reply::done(), false);
        assert!(done.starts_with("HTTP/1.1 204 No Content\r\n"), "{done}");
        assert!(done.ends_with("Connection: close\r\n\r\n"), "{done}");
        assert!(!done.contains("Content-Length"));
        let not = text(Reply::not_allowed("no", &["GET", "PUT"]), true);
        assert!(not.contains("405 Method Not Allowed"), "{not}");
        assert!(not.contains("Allow: GET, PUT\r\n"), "{not}");
    }
}
