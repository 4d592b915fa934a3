//! A client of HTTP that shows each byte's effect: one request, one connection, and what came back.

use crate::service::{SOON, Service};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

/// What came back.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Response {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The vectors of an answer.
    pub fn vectors(&self) -> Vec<Vec<f32>> {
        assert_eq!(self.status, 200, "{self:?}");
        let json = self.json();
        let data = json["data"].as_array().unwrap().iter();
        let vector = |item: &Value| serde_json::from_value(item["embedding"].clone()).unwrap();
        data.map(vector).collect()
    }

    /// Status, `error.code` and `error.param`.
    pub fn error(&self) -> (u16, String, Option<String>) {
        let json = self.json();
        let text = |name: &str| json["error"][name].as_str().map(str::to_owned);
        assert!(text("message").is_some() && text("type").is_some(), "{self:?}");
        (self.status, text("code").unwrap_or_default(), text("param"))
    }
}

/// A connection to where the service listens.
pub fn connect(address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// The bytes of a request.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|(name, _)| *name == "host") {
        text.push_str("host: 127.0.0.1\r\n");
    }
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" {
        let typed = headers.iter().any(|(name, _)| *name == "content-type");
        text.push_str(if typed {
            ""
        } else {
            "content-type: application/json\r\n"
        });
        text.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    format!("{text}\r\n{body}").into_bytes()
}

/// Reads to the end of the connection.
pub fn response(stream: &mut TcpStream) -> Response {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no head: {text:?}"));
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let header = |line: &str| {
        let (name, value) = line.split_once(": ").unwrap();
        (name.to_ascii_lowercase(), value.to_owned())
    };
    Response {
        status,
        headers: lines.map(header).collect(),
        body: body.to_owned(),
    }
}

/// One request and its response.
pub fn ask(address: &str, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Response {
    let mut stream = connect(address);
    stream.write_all(&request(method, path, headers, body)).unwrap();
    response(&mut stream)
}

/// A page.
pub fn get(address: &str, path: &str) -> Response {
    ask(address, "GET", path, &[], "")
}

/// Asks for vectors.
pub fn embed(address: &str, body: &Value) -> Response {
    ask(address, "POST", "/v1/embeddings", &[], &body.to_string())
}

/// Where the service listens, as it says itself.
pub fn address(service: &Service) -> String {
    let told: Value = serde_json::from_slice(&service.status(&["--json"]).stdout).unwrap();
    let listen = told["http"]["listen"].as_str();
    listen
        .unwrap_or_else(|| panic!("HTTP is not served: {}", told["http"]))
        .to_owned()
}
