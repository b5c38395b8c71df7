//! What a credential plugin prints: any bytes give an answer, and a token comes only of an `ExecCredential` that has it.
//!
//! Not in the library's list, which `tunnel-core` tests: it is the client's own file, by its path, since the client's crate
//! brings relay and agent along.

#[allow(dead_code, reason = "its constants are the client's")]
#[path = "../../client-proxy/src/login/exec_credential.rs"]
mod decoder;

/// Any output.
pub fn run(output: &[u8]) {
    let Ok(decoded) = decoder::decode(output) else { return };
    assert!(std::str::from_utf8(output).is_ok());
    // What is skipped may be too deep, or a number too large, to be kept.
    let Ok(read) = serde_json::from_slice::<serde_json::Value>(output) else { return };
    assert_eq!(read["kind"], "ExecCredential");
    let token = read["status"]["token"].as_str().expect("it has a token");
    assert!(!token.is_empty() && token.as_bytes() == decoded.token.reveal());
    assert_eq!(decoded.expires.is_some(), read["status"]["expirationTimestamp"].is_string());
    assert!(token.len() < 8 || !format!("{decoded:?}").contains(token), "it prints");
}

/// Outputs that are taken, and some that nearly are.
pub fn seeds() -> Vec<Vec<u8>> {
    let with = |status: &str| {
        format!(
            r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{status}}}"#
        )
        .into_bytes()
    };
    vec![
        with(r#"{"token":"a.b.c"}"#),
        with(r#"{"token":"a.b.c","expirationTimestamp":"2030-01-01T00:00:00Z"}"#),
        with(r#"{"token":"a","expirationTimestamp":"-009999-01-02T01:59:59.999999999-25:59:59"}"#),
        [&with(r#"{"token":"a","x":""#)[..], b"\x80\"}}"].concat(),
        with(r#"{"clientCertificateData":"c","clientKeyData":"k"}"#),
        br#"{"apiVersion":"client.authentication.k8s.io/v1beta1","kind":"ExecCredential","status":{"token":"t"}}"#.to_vec(),
    ]
}
