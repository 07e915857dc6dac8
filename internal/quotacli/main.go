// Package quotacli is the command line of quotas: `keyplane quota …`. It signs and sends requests to Service Quotas of a running server.
//
// It is a client: it knows the server by its wire protocol only.
package quotacli

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"strconv"
	"text/tabwriter"

	"github.com/keyplane/keyplane/internal/iamcli"
)

const usage = `usage: keyplane quota show  [--account ID] [--json] [--endpoint URL] [--region REGION]
       keyplane quota set   --quota NAME --value N|unlimited [--account ID] [--endpoint URL] [--region REGION]
       keyplane quota reset --quota NAME [--account ID] [--endpoint URL] [--region REGION]

What an account may use of AWS KMS: how many keys, aliases and grants, and how many requests a second of each kind. A change is in effect at once.
It takes credentials of AWS_SHARED_CREDENTIALS_FILE and AWS_PROFILE, or the environment, of a principal of the account that the server was
started with who may servicequotas:RequestServiceQuotaIncrease; other accounts can see their own quotas.

  --account ID      default that of the credentials
  --quota NAME      a name, code or title that show lists: CreateKey, Symmetric, KeysPerAccount
  --value N         a number, for requests also one below 1, or unlimited
  --endpoint URL    default AWS_ENDPOINT_URL, else http://127.0.0.1:4599
  --region REGION   default that of the AWS configuration, else us-east-1
`

const (
	service      = "servicequotas"
	targetPrefix = "KeyplaneQuotas."
)

// change is the input of every operation.
type change struct {
	AccountId string   `json:",omitempty"`
	Quota     string   `json:",omitempty"`
	Value     *float64 `json:",omitempty"`
	Unlimited bool     `json:",omitempty"`
}

// detail is one quota of an answer. Value and Usual are numbers or "unlimited".
type detail struct {
	Name, Code, Title string
	Value, Usual      any
	Set, Rate         bool
	Usage             *int `json:",omitempty"`
}

// Main is `keyplane quota`. It returns the exit status: 0 success, 1 failure or refusal, 2 usage.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 0 {
		fmt.Fprint(stderr, usage)
		return 2
	}
	var in change
	var endpoint, region, value string
	var asJSON bool
	command := args[0]
	fs := flag.NewFlagSet("keyplane quota "+command, flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, usage) }
	fs.StringVar(&in.AccountId, "account", "", "")
	fs.StringVar(&endpoint, "endpoint", "", "")
	fs.StringVar(&endpoint, "endpoint-url", "", "")
	fs.StringVar(&region, "region", "", "")
	switch command {
	case "show":
		fs.BoolVar(&asJSON, "json", false, "")
	case "set":
		fs.StringVar(&in.Quota, "quota", "", "")
		fs.StringVar(&value, "value", "", "")
	case "reset":
		fs.StringVar(&in.Quota, "quota", "", "")
	case "help", "--help", "-h":
		fmt.Fprint(stdout, usage)
		return 0
	default:
		fmt.Fprintf(stderr, "keyplane quota: there is no command %q\n\n%s", command, usage)
		return 2
	}
	if err := fs.Parse(args[1:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return 0
		}
		return 2
	}
	err := in.read(command, value, fs.Args())
	if err != nil {
		fmt.Fprintf(stderr, "keyplane quota %s: %v\n", command, err)
		return 2
	}
	if err = run(command, endpoint, region, in, asJSON, stdout); err != nil {
		var refused *iamcli.Refused
		if errors.As(err, &refused) {
			fmt.Fprintln(stderr, refused)
		} else {
			fmt.Fprintf(stderr, "keyplane quota %s: %v\n", command, err)
		}
		return 1
	}
	return 0
}

// read checks what the flags left open.
func (in *change) read(command, value string, rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("unexpected argument %q", rest[0])
	case command != "show" && in.Quota == "":
		return errors.New("--quota is missing")
	case command != "set":
		return nil
	case value == "":
		return errors.New("--value is missing")
	case value == "unlimited":
		in.Unlimited = true
		return nil
	}
	v, err := strconv.ParseFloat(value, 64)
	if err != nil || !(v >= 0 && v <= 1e15) || math.Signbit(v) {
		return fmt.Errorf("--value %q is neither a number nor unlimited", value)
	}
	in.Value = &v
	return nil
}

func run(command, endpoint, region string, in change, asJSON bool, stdout io.Writer) error {
	ctx := context.Background()
	client, err := iamcli.NewClient(ctx, endpoint, region)
	if err != nil {
		return err
	}
	if command != "show" {
		target := map[string]string{"set": "SetQuota", "reset": "ResetQuota"}[command]
		var d detail
		if err := client.CallJSON(ctx, service, targetPrefix+target, in, &d); err != nil {
			return err
		}
		fmt.Fprintf(stdout, "%s is %s%s now; usually it is %s\n", d.Name, text(d.Value), d.unit(), text(d.Usual))
		return nil
	}
	var out struct {
		AccountId, Region, Profile string
		Quotas                     []detail
	}
	if err := client.CallJSON(ctx, service, targetPrefix+"ShowQuotas", in, &out); err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(stdout)
		e.SetIndent("", "    ")
		return e.Encode(out)
	}
	fmt.Fprintf(stdout, "account %s, Region %s, profile %s\n\n", out.AccountId, out.Region, out.Profile)
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tVALUE\tUSUALLY\tUSAGE\tCODE\tTITLE")
	for _, d := range out.Quotas {
		used := ""
		if d.Usage != nil {
			used = strconv.Itoa(*d.Usage)
		}
		set := ""
		if d.Set {
			set = " (set)"
		}
		fmt.Fprintf(w, "%s\t%s%s%s\t%s\t%s\t%s\t%s\n", d.Name, text(d.Value), d.unit(), set, text(d.Usual), used, d.Code, d.Title)
	}
	return w.Flush()
}

func (d *detail) unit() string {
	if d.Rate && d.Value != "unlimited" {
		return "/s"
	}
	return ""
}

// text is a number without an exponent, or the word that stands for none.
func text(v any) string {
	if n, ok := v.(float64); ok {
		return strconv.FormatFloat(n, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}
