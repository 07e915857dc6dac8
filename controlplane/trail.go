package controlplane

import (
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/keyplane/keyplane/internal/cloudtrail"
)

// shown is a member of a request or reply that audit records show. What has no row is never shown: grant tokens, key material, passwords.
type shown struct {
	name    string // as in the service model; records have it with a small first letter
	form    form
	members []shown // of structures
	as      string  // what records call it; "": name
}

type form uint8

const (
	scalar     form = iota // text, number or Boolean
	date                   // seconds since 1970, shown as Apr 12, 2021, 6:58:30 PM
	list                   // of scalars
	texts                  // a map of texts to texts: an encryption context
	structure              // members
	structures             // a list of structures
)

// scalars are members of that form, their names apart by blanks.
func scalars(names string) (list []shown) {
	for _, name := range strings.Fields(names) {
		list = append(list, shown{name: name})
	}
	return list
}

func with(list []shown, more ...shown) []shown { return append(list, more...) }

// trail is what the record of an operation says, besides who, when and on what (CloudTrail log entries in the KMS developer guide).
type trail struct {
	request []shown // requestParameters; none: null
	reply   []shown // responseElements, of the reply
	keyID   bool    // responseElements have the key's ARN, whatever the reply has
}

var (
	tagsShown = shown{name: "Tags", form: structures, members: scalars("TagKey TagValue")}

	clusterShown = shown{name: "CloudHsmClusterId", as: "clusterId"}
	proxyShown   = scalars("XksProxyConnectivity XksProxyUriEndpoint XksProxyUriPath XksProxyVpcEndpointServiceName XksProxyVpcEndpointServiceOwner")

	constraintsShown = shown{name: "Constraints", form: structure, members: []shown{
		{name: "EncryptionContextSubset", form: texts}, {name: "EncryptionContextEquals", form: texts}, {name: "SourceArn"},
	}}

	metadataShown = shown{name: "KeyMetadata", form: structure, members: with(
		scalars("AWSAccountId KeyId Arn"), shown{name: "CreationDate", form: date}, shown{name: "Enabled"}, shown{name: "Description"}, shown{name: "KeyUsage"},
		shown{name: "KeyState"}, shown{name: "DeletionDate", form: date}, shown{name: "ValidTo", form: date}, shown{name: "Origin"}, shown{name: "ExpirationModel"}, shown{name: "KeyManager"},
		shown{name: "CustomerMasterKeySpec"}, shown{name: "KeySpec"}, shown{name: "EncryptionAlgorithms", form: list}, shown{name: "SigningAlgorithms", form: list},
		shown{name: "MacAlgorithms", form: list}, shown{name: "KeyAgreementAlgorithms", form: list}, shown{name: "EncapsulationAlgorithms", form: list},
		shown{name: "MultiRegion"}, shown{name: "MultiRegionConfiguration", form: structure, members: []shown{
			{name: "MultiRegionKeyType"}, {name: "PrimaryKey", form: structure, members: scalars("Arn Region")}, {name: "ReplicaKeys", form: structures, members: scalars("Arn Region")},
		}}, shown{name: "CustomKeyStoreId"}, shown{name: "CloudHsmClusterId"}, shown{name: "XksKeyConfiguration", form: structure, members: scalars("Id")},
		shown{name: "PendingDeletionWindowInDays"}, shown{name: "CurrentKeyMaterialId"}, shown{name: "KeyplaneProtection"},
	)}
)

// trails has a row for every operation of handlers; a test compares the two.
var trails = map[string]trail{
	"CancelKeyDeletion":     {request: scalars("KeyId"), keyID: true},
	"ConnectCustomKeyStore": {request: scalars("CustomKeyStoreId")},
	"CreateAlias":           {request: scalars("AliasName TargetKeyId"), keyID: true},
	"CreateCustomKeyStore": {
		request: with(append(scalars("CustomKeyStoreName CustomKeyStoreType"), clusterShown), proxyShown...), reply: scalars("CustomKeyStoreId"),
	},
	"CreateGrant": {
		request: with(scalars("KeyId GranteePrincipal RetiringPrincipal GranteeServicePrincipal RetiringServicePrincipal Name DryRun"),
			shown{name: "Operations", form: list}, constraintsShown),
		reply: scalars("GrantId"), keyID: true,
	},
	"CreateKey": {
		request: with(scalars("Description KeyUsage KeySpec CustomerMasterKeySpec Origin BypassPolicyLockoutSafetyCheck MultiRegion Policy "+
			"CustomKeyStoreId XksKeyId"), tagsShown),
		reply: []shown{metadataShown},
	},
	"DeleteAlias":               {request: scalars("AliasName"), keyID: true},
	"DeleteCustomKeyStore":      {request: scalars("CustomKeyStoreId")},
	"DeleteImportedKeyMaterial": {request: scalars("KeyId KeyMaterialId"), reply: scalars("KeyMaterialId"), keyID: true},
	"DescribeCustomKeyStores":   {request: scalars("CustomKeyStoreId CustomKeyStoreName Limit Marker")},
	"DescribeKey":               {request: scalars("KeyId")},
	"DisableKey":                {request: scalars("KeyId"), keyID: true},
	"DisableKeyRotation":        {request: scalars("KeyId"), keyID: true},
	"DisconnectCustomKeyStore":  {request: scalars("CustomKeyStoreId")},
	"EnableKey":                 {request: scalars("KeyId"), keyID: true},
	"EnableKeyRotation":         {request: scalars("KeyId RotationPeriodInDays"), keyID: true},
	"GetKeyLastUsage":           {request: scalars("KeyId")},
	"GetKeyPolicy":              {request: scalars("KeyId PolicyName")},
	"GetKeyRotationStatus":      {request: scalars("KeyId")},
	"GetParametersForImport":    {request: scalars("KeyId WrappingAlgorithm WrappingKeySpec")},
	"ImportKeyMaterial": {
		request: with(scalars("KeyId"), shown{name: "ValidTo", form: date}, shown{name: "ExpirationModel"}, shown{name: "ImportType"}, shown{name: "KeyMaterialDescription"}),
		reply:   scalars("KeyMaterialId"), keyID: true,
	},
	"ListAliases":         {request: scalars("KeyId Limit Marker")},
	"ListGrants":          {request: scalars("KeyId GrantId GranteePrincipal GranteeServicePrincipal Limit Marker")},
	"ListKeyPolicies":     {request: scalars("KeyId Limit Marker")},
	"ListKeyRotations":    {request: scalars("KeyId IncludeKeyMaterial Limit Marker")},
	"ListKeys":            {request: scalars("Limit Marker")},
	"ListResourceTags":    {request: scalars("KeyId Limit Marker")},
	"ListRetirableGrants": {request: scalars("RetiringPrincipal RetiringServicePrincipal Limit Marker")},
	"PutKeyPolicy":        {request: scalars("KeyId PolicyName Policy BypassPolicyLockoutSafetyCheck"), keyID: true},
	"ReplicateKey": {
		request: scalars("KeyId ReplicaRegion BypassPolicyLockoutSafetyCheck Description"),
		reply:   []shown{{name: "ReplicaKeyMetadata", form: structure, members: metadataShown.members}, {name: "ReplicaPolicy"}},
	},
	"RetireGrant":       {keyID: true},
	"RevokeGrant":       {request: scalars("KeyId GrantId DryRun"), keyID: true},
	"RotateKeyOnDemand": {request: scalars("KeyId"), keyID: true},
	"ScheduleKeyDeletion": {
		request: scalars("KeyId PendingWindowInDays"),
		reply:   with(scalars("KeyState PendingWindowInDays"), shown{name: "DeletionDate", form: date}), keyID: true,
	},
	"TagResource":          {request: with(scalars("KeyId"), tagsShown), keyID: true},
	"UntagResource":        {request: with(scalars("KeyId"), shown{name: "TagKeys", form: list}), keyID: true},
	"UpdateAlias":          {request: scalars("AliasName TargetKeyId"), keyID: true},
	"UpdateCustomKeyStore": {request: with(append(scalars("CustomKeyStoreId NewCustomKeyStoreName"), clusterShown), proxyShown...)},
	"UpdateKeyDescription": {request: scalars("KeyId Description"), keyID: true},
	"UpdatePrimaryRegion":  {request: scalars("KeyId PrimaryRegion")},
}

// appendShown appends those members of a JSON object that are shown, in the order of the list. What has not the form that it should have is
// left out, as is null.
func appendShown(dst []byte, object []byte, members []shown) []byte {
	var values map[string]jsontext.Value
	if json.Unmarshal(object, &values) != nil {
		return dst
	}
	for i := range members {
		m := &members[i]
		value, ok := values[m.name]
		if !ok || value.Kind() == 'n' {
			continue
		}
		start := len(dst)
		if dst, ok = m.append(cloudtrail.AppendName(dst, m.label()), value); !ok {
			dst = dst[:start]
		}
	}
	return dst
}

// label is the member's name in records.
func (m *shown) label() string {
	if m.as != "" {
		return m.as
	}
	return strings.ToLower(m.name[:1]) + m.name[1:]
}

// append appends a value, false if it has another form.
func (m *shown) append(dst []byte, value jsontext.Value) ([]byte, bool) {
	switch m.form {
	case scalar:
		return appendScalar(dst, value)
	case date:
		var seconds float64
		if json.Unmarshal(value, &seconds) != nil {
			return dst, false
		}
		return cloudtrail.AppendDate(dst, calendarSeconds(seconds)), true
	case list, structures:
		var values []jsontext.Value
		if json.Unmarshal(value, &values) != nil {
			return dst, false
		}
		dst = append(dst, '[')
		for _, v := range values {
			start := len(dst)
			if start > 0 && dst[start-1] != '[' {
				dst = append(dst, ',')
			}
			ok := false
			if m.form == list {
				dst, ok = appendScalar(dst, v)
			} else if ok = v.Kind() == '{'; ok {
				dst = append(appendShown(append(dst, '{'), v, m.members), '}')
			}
			if !ok {
				dst = dst[:start]
			}
		}
		return append(dst, ']'), true
	case texts:
		var pairs map[string]string
		if json.Unmarshal(value, &pairs) != nil {
			return dst, false
		}
		b, err := json.Marshal(pairs, json.Deterministic(true))
		return append(dst, b...), err == nil
	case structure:
		if value.Kind() != '{' {
			return dst, false
		}
		return append(appendShown(append(dst, '{'), value, m.members), '}'), true
	}
	return dst, false
}

// calendarSeconds is seconds since 1970 as a whole number: of a number that is no date of a calendar, the first or the last date that is one.
func calendarSeconds(seconds float64) int64 {
	const year0, year9999 = -62167219200, 253402300799
	return int64(min(max(seconds, year0), year9999))
}

func appendScalar(dst []byte, value jsontext.Value) ([]byte, bool) {
	switch value.Kind() {
	case '"':
		var text string
		if json.Unmarshal(value, &text) != nil {
			return dst, false
		}
		return cloudtrail.AppendString(dst, []byte(text)), true
	case '0', 't', 'f':
		return append(dst, value...), true
	}
	return dst, false
}
