// Command cel-oracle says what kube-apiserver's own code makes of authenticators and claims.
//
// It reads cases (cases.json) and prints, for each, whether the authenticator loads, and for each set of claims the user
// that comes of it. The result is compared with goldens.json here (-check), and by identity's tests with what towline
// makes of the same.
package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"sort"
	"strings"

	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/plugin/pkg/authenticator/token/oidc"
	"k8s.io/klog/v2"
)

const issuer = "https://issuer.example"

// Case is one expression in one place, or one whole authenticator's mappings.
type Case struct {
	// Username, groups, uid, extra: mappings. Rule: a claim validation rule. User: a user validation rule.
	Place      string `json:"place"`
	Expression string `json:"expression"`
}

// Cases are all expressions, and all claims that each is evaluated with.
type Cases struct {
	Claims      []map[string]any `json:"claims"`
	Expressions []Case           `json:"expressions"`
}

// Result is what came of one case.
type Result struct {
	Place      string   `json:"place"`
	Expression string   `json:"expression"`
	Loads      bool     `json:"loads"`
	Users      []string `json:"users,omitempty"`
}

// payload stands for a key set: whoever signed it, this is what the token says.
type payload struct{}

func (payload) VerifySignature(_ context.Context, token string) ([]byte, error) {
	return base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
}

func authenticator(c Case) apiserver.JWTAuthenticator {
	none := ""
	a := apiserver.JWTAuthenticator{
		Issuer: apiserver.Issuer{URL: issuer, Audiences: []string{"cluster"}},
		ClaimMappings: apiserver.ClaimMappings{
			Username: apiserver.PrefixedClaimOrExpression{Claim: "sub", Prefix: &none},
		},
	}
	switch c.Place {
	case "username":
		a.ClaimMappings.Username = apiserver.PrefixedClaimOrExpression{Expression: c.Expression}
	case "groups":
		a.ClaimMappings.Groups = apiserver.PrefixedClaimOrExpression{Expression: c.Expression}
	case "uid":
		a.ClaimMappings.UID = apiserver.ClaimOrExpression{Expression: c.Expression}
	case "extra":
		a.ClaimMappings.Extra = []apiserver.ExtraMapping{{Key: "example.org/x", ValueExpression: c.Expression}}
	case "rule":
		a.ClaimValidationRules = []apiserver.ClaimValidationRule{{Expression: c.Expression}}
	case "user":
		a.ClaimMappings.Groups = apiserver.PrefixedClaimOrExpression{Claim: "groups", Prefix: &none}
		a.ClaimMappings.Extra = []apiserver.ExtraMapping{{Key: "example.org/x", ValueExpression: "claims.?x.orValue([])"}}
		a.UserValidationRules = []apiserver.UserValidationRule{{Expression: c.Expression}}
	default:
		panic("no such place: " + c.Place)
	}
	return a
}

func told(info user.Info) string {
	extra := info.GetExtra()
	delete(extra, user.CredentialIDKey)
	parts := []string{"user=" + info.GetName(), "groups=" + strings.Join(info.GetGroups(), "|"), "uid=" + info.GetUID()}
	keys := make([]string, 0, len(extra))
	for key := range extra {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	for _, key := range keys {
		parts = append(parts, key+"="+strings.Join(extra[key], "|"))
	}
	return strings.Join(parts, ";")
}

func evaluate(cases Cases) []Result {
	ctx := context.Background()
	part := func(value any) string {
		text, err := json.Marshal(value)
		if err != nil {
			panic(err)
		}
		return base64.RawURLEncoding.EncodeToString(text)
	}
	var results []Result
	for _, c := range cases.Expressions {
		result := Result{Place: c.Place, Expression: c.Expression}
		a, err := oidc.New(ctx, oidc.Options{JWTAuthenticator: authenticator(c), KeySet: payload{}})
		if err == nil {
			result.Loads = true
			for _, claims := range cases.Claims {
				full := map[string]any{"iss": issuer, "aud": "cluster", "exp": 4000000000, "sub": "alice"}
				for name, value := range claims {
					full[name] = value
				}
				token := part(map[string]string{"alg": "RS256"}) + "." + part(full) + ".AA"
				response, ok, err := a.AuthenticateToken(ctx, token)
				if err != nil || !ok {
					result.Users = append(result.Users, "refused")
					continue
				}
				result.Users = append(result.Users, told(response.User))
			}
		}
		results = append(results, result)
	}
	return results
}

func read(path string, into any) {
	text, err := os.ReadFile(path)
	if err != nil {
		panic(err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		panic(fmt.Sprintf("%s: %v", path, err))
	}
}

func main() {
	check := flag.Bool("check", false, "compare with goldens.json instead of printing")
	flag.Parse()
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	var cases Cases
	read("cases.json", &cases)
	results := evaluate(cases)
	if !*check {
		lines := make([]string, 0, len(results))
		for _, result := range results {
			var line strings.Builder
			out := json.NewEncoder(&line)
			out.SetEscapeHTML(false)
			if err := out.Encode(result); err != nil {
				panic(err)
			}
			lines = append(lines, strings.TrimSpace(line.String()))
		}
		fmt.Printf("[\n%s\n]\n", strings.Join(lines, ",\n"))
		return
	}
	var goldens []Result
	read("goldens.json", &goldens)
	if len(goldens) != len(results) {
		fmt.Printf("goldens.json has %d results and should have %d\n", len(goldens), len(results))
		os.Exit(1)
	}
	wrong := 0
	for number, result := range results {
		if !reflect.DeepEqual(result, goldens[number]) {
			wrong++
			fmt.Printf("%s %q: golden %v, kube-apiserver %v\n", result.Place, result.Expression, goldens[number], result)
		}
	}
	if wrong > 0 {
		os.Exit(1)
	}
	fmt.Printf("%d expressions with %d sets of claims each: as kube-apiserver says\n", len(results), len(cases.Claims))
}
