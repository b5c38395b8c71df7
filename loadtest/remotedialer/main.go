// A tunnel of Rancher's remotedialer, as Rancher itself uses the library: agents connect to the server over wss, and
// the server reaches through them, with TLS of its own, what only they can reach.
//
//	remotedialer server --tunnel ADDRESS --near ADDRESS --far ADDRESS --far-ca FILE --far-name NAME --cert FILE --key FILE
//	remotedialer agent  --connect wss://ADDRESS/connect --ca FILE --name NAME
//
// Both take --token. The server listens on --near only once an agent is there.
package main

import (
	"context"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/rancher/remotedialer"
)

const (
	agentKey    = "agent"
	tokenHeader = "X-Tunnel-Token"
	dialWithin  = 10 * time.Second
)

type options struct {
	tunnel, near, far, farCA, farName, cert, key string
	connect, ca, name                            string
	token                                        string
}

func main() {
	if len(os.Args) < 2 {
		log.Fatal("say server or agent")
	}
	var o options
	flags := flag.NewFlagSet(os.Args[1], flag.ExitOnError)
	flags.StringVar(&o.tunnel, "tunnel", "", "where agents connect to")
	flags.StringVar(&o.near, "near", "", "where those who want through connect to")
	flags.StringVar(&o.far, "far", "", "what the agent dials")
	flags.StringVar(&o.farCA, "far-ca", "", "authority of the far end's certificate")
	flags.StringVar(&o.farName, "far-name", "", "name in the far end's certificate")
	flags.StringVar(&o.cert, "cert", "", "the server's certificate")
	flags.StringVar(&o.key, "key", "", "its key")
	flags.StringVar(&o.connect, "connect", "", "the server, for an agent")
	flags.StringVar(&o.ca, "ca", "", "authority of the server's certificate")
	flags.StringVar(&o.name, "name", "", "name in the server's certificate")
	flags.StringVar(&o.token, "token", "", "what both know")
	if err := flags.Parse(os.Args[2:]); err != nil {
		log.Fatal(err)
	}
	var err error
	switch os.Args[1] {
	case "server":
		err = serve(&o)
	case "agent":
		err = join(&o)
	default:
		err = fmt.Errorf("say server or agent, not %q", os.Args[1])
	}
	if err != nil {
		log.Fatal(err)
	}
}

// join connects to the server, and again whenever that ends.
func join(o *options) error {
	roots, err := readRoots(o.ca)
	if err != nil {
		return err
	}
	dialer := &websocket.Dialer{
		HandshakeTimeout: remotedialer.HandshakeTimeOut,
		TLSClientConfig:  &tls.Config{RootCAs: roots, ServerName: o.name, MinVersion: tls.VersionTLS13},
	}
	headers := http.Header{tokenHeader: {o.token}}
	anywhere := func(string, string) bool { return true }
	for {
		err := remotedialer.ConnectToProxy(context.Background(), o.connect, headers, anywhere, dialer, nil)
		log.Printf("the tunnel ended: %v", err)
		time.Sleep(200 * time.Millisecond)
	}
}

// serve accepts agents, and pipes each connection of the near end through one of them.
func serve(o *options) error {
	certificate, err := tls.LoadX509KeyPair(o.cert, o.key)
	if err != nil {
		return err
	}
	roots, err := readRoots(o.farCA)
	if err != nil {
		return err
	}
	inward := &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13}
	outward := &tls.Config{
		RootCAs: roots, ServerName: o.farName, MinVersion: tls.VersionTLS13,
		ClientSessionCache: tls.NewLRUClientSessionCache(0),
	}
	server := remotedialer.New(func(request *http.Request) (string, bool, error) {
		given := []byte(request.Header.Get(tokenHeader))
		return agentKey, subtle.ConstantTimeCompare(given, []byte(o.token)) == 1, nil
	}, remotedialer.DefaultErrorWriter)

	tunnel, err := tls.Listen("tcp", o.tunnel, inward)
	if err != nil {
		return err
	}
	failed := make(chan error, 2)
	go func() {
		mux := http.NewServeMux()
		mux.Handle("/connect", server)
		failed <- (&http.Server{Handler: mux, ReadHeaderTimeout: dialWithin}).Serve(tunnel)
	}()
	for !server.HasSession(agentKey) {
		select {
		case err := <-failed:
			return err
		case <-time.After(10 * time.Millisecond):
		}
	}
	near, err := tls.Listen("tcp", o.near, inward)
	if err != nil {
		return err
	}
	log.Printf("ready: an agent is there")
	dial := server.Dialer(agentKey)
	go func() {
		for {
			connection, err := near.Accept()
			if err != nil {
				failed <- err
				return
			}
			go through(connection, dial, o.far, outward)
		}
	}()
	return <-failed
}

// through carries one connection: TLS ends here, and a TLS of the server's own begins, inside the tunnel, as between
// Rancher's server and a kube-apiserver.
func through(near net.Conn, dial remotedialer.Dialer, address string, config *tls.Config) {
	defer near.Close()
	ctx, cancel := context.WithTimeout(context.Background(), dialWithin)
	defer cancel()
	raw, err := dial(ctx, "tcp", address)
	if err != nil {
		log.Printf("the far end can't be reached: %v", err)
		return
	}
	defer raw.Close()
	far := tls.Client(raw, config)
	if err := far.HandshakeContext(ctx); err != nil {
		log.Printf("no TLS with the far end: %v", err)
		return
	}
	var both sync.WaitGroup
	// remotedialer knows no half-close: the end of one direction is the end of both.
	both.Go(func() { io.Copy(far, near); far.Close(); near.Close() })
	both.Go(func() { io.Copy(near, far); far.Close(); near.Close() })
	both.Wait()
}

func readRoots(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New("no certificate in " + file)
	}
	return roots, nil
}
