package authztest

import (
	"strings"
)

// refused says that a document of the case is refused: an ARN pattern of fewer than six parts.
func refused(c *Case) { c.Want = Malformed }

// malformedCases are documents that have to be refused.
func malformedCases() (cases []Case) {
	add := func(name, document string) {
		c := ask(Malformed, "%s", name)
		c.KeyPolicy = Document(document)
		cases = append(cases, c)
	}
	whole := func(statement string) string { return string(doc(statement)) }
	with := func(more string) string {
		return whole(`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":"*",` + more + `}`)
	}
	condition := func(operator, value string) string {
		return with(`"Condition":{"` + operator + `":{"aws:PrincipalTag/x":` + value + `}}`)
	}
	add("no object", `[]`)
	add("a text", `"x"`)
	add("no Statement", `{"Version":"2012-10-17"}`)
	add("Statement is a text", `{"Version":"2012-10-17","Statement":"x"}`)
	add("statement is a text", `{"Version":"2012-10-17","Statement":["x"]}`)
	add("unknown version", `{"Version":"2012-10-18","Statement":`+allowAlice+`}`)
	add("version is a number", `{"Version":2012,"Statement":`+allowAlice+`}`)
	add("unknown element", `{"Version":"2012-10-17","Statement":`+allowAlice+`,"Other":1}`)
	add("element in another case", `{"version":"2012-10-17","Statement":`+allowAlice+`}`)
	add("Version twice", `{"Version":"2012-10-17","Version":"2012-10-17","Statement":`+allowAlice+`}`)
	add("Statement twice", `{"Statement":`+allowAlice+`,"Statement":`+allowAlice+`}`)
	add("unknown element in a statement", with(`"Other":1`))
	add("statement element in another case", with(`"condition":{}`))
	add("Effect twice", with(`"Effect":"Allow"`))
	add("Condition operator twice", with(`"Condition":{"Null":{"aws:username":"true"},"Null":{"aws:userid":"true"}}`))
	add("Condition key twice", with(`"Condition":{"Null":{"aws:username":"true","aws:username":"false"}}`))
	add("no Effect", whole(`{"Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("Effect in lower case", whole(`{"Effect":"allow","Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("other Effect", whole(`{"Effect":"Permit","Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("Effect is a list", whole(`{"Effect":["Allow"],"Principal":"*","Action":"kms:*","Resource":"*"}`))
	add("no Principal", whole(`{"Effect":"Allow","Action":"kms:*","Resource":"*"}`))
	add("Principal and NotPrincipal", with(`"NotPrincipal":"*"`))
	add("Action and NotAction", with(`"NotAction":"kms:Decrypt"`))
	add("Resource and NotResource", with(`"NotResource":"x"`))
	add("Principal is a name", whole(`{"Effect":"Allow","Principal":"alice","Action":"kms:*","Resource":"*"}`))
	add("Principal of unknown kind", whole(`{"Effect":"Allow","Principal":{"User":"alice"},"Action":"kms:*","Resource":"*"}`))
	add("Principal with a wildcard", whole(`{"Effect":"Allow","Principal":{"AWS":"arn:aws:iam::111122223333:user/*"},"Action":"kms:*","Resource":"*"}`))
	add("Principal with a short account", whole(`{"Effect":"Allow","Principal":{"AWS":"11112222333"},"Action":"kms:*","Resource":"*"}`))
	add("Action is a number", whole(`{"Effect":"Allow","Principal":"*","Action":7,"Resource":"*"}`))
	add("Action is an object", whole(`{"Effect":"Allow","Principal":"*","Action":{},"Resource":"*"}`))
	add("Resource is null", whole(`{"Effect":"Allow","Principal":"*","Action":"kms:*","Resource":null}`))
	add("Condition is a list", with(`"Condition":[]`))
	add("Condition operator is a text", with(`"Condition":{"StringEquals":"x"}`))
	add("text after the document", string(doc(allowAlice))+"{}")
	add("unfinished document", strings.TrimSuffix(string(doc(allowAlice)), "}"))
	add("comment", "// x\n"+string(doc(allowAlice)))
	for _, o := range []string{"StringEqual", "stringequals", "StringMatches", "NumericLike", "BoolNotEquals", "ArnLikeIgnoreCase", "", "NullIfExists",
		"ForSomeValues:StringEquals", "ForAllValues:", "forallvalues:StringEquals", "StringEqualsIfExistsIfExists", "IfExists", "StringEqualsifexists"} {
		add("operator/"+o, condition(o, `"x"`))
	}
	for _, v := range []struct{ operator, value string }{
		{"NumericEquals", `"x"`}, {"NumericLessThan", `""`}, {"NumericEquals", `"0x10"`}, {"NumericEquals", `["1","x"]`}, {"NumericEquals", `"NaN"`},
		{"NumericEquals", `"${aws:PrincipalTag/x}"`},
		{"DateEquals", `"x"`}, {"DateLessThan", `"2026-13-01"`}, {"DateEquals", `"2026-02-30"`}, {"DateEquals", `"${aws:CurrentTime}"`},
		{"Bool", `"yes"`}, {"Bool", `"1"`}, {"Bool", `"${aws:SecureTransport}"`}, {"Null", `"x"`}, {"Null", `"${aws:SecureTransport}"`},
		{"IpAddress", `"10.0.0"`}, {"IpAddress", `"10.0.0.0/33"`}, {"NotIpAddress", `"x"`}, {"IpAddress", `"${aws:SourceIp}"`},
		{"BinaryEquals", `"!!!"`}, {"BinaryEquals", `"cmV"`}, {"ArnLike", `"arn:aws:iam"`}, {"ArnEquals", `"alice"`},
		{"StringEquals", `{"a":"b"}`}, {"StringEquals", `null`}, {"StringEquals", `[["x"]]`},
	} {
		add("value/"+v.operator+"/"+v.value, condition(v.operator, v.value))
	}

	unknown := ask(Malformed, "principal that does not exist")
	unknown.KeyPolicy, unknown.Bind = doc(allowAlice), map[string]string{alice: ""}
	cases = append(cases, unknown)
	for _, v := range []struct{ name, statement string }{
		{"with Principal", allowAlice},
		{"with NotPrincipal", `{"Effect":"Allow","NotPrincipal":"*","Action":"kms:*","Resource":"*"}`},
		{"without Action", `{"Effect":"Allow","Resource":"*"}`},
		{"without Resource", `{"Effect":"Allow","Action":"kms:*"}`},
		{"with a Resource that is no ARN", `{"Effect":"Allow","Action":"kms:*","Resource":"*key/*"}`},
		{"with a NotResource that is no ARN", `{"Effect":"Allow","Action":"kms:*","NotResource":"alias/app"}`},
		{"with a Resource with upper case ARN", `{"Effect":"Allow","Action":"kms:*","Resource":"ARN:aws:kms:us-east-1:111122223333:key/*"}`},
	} {
		c := ask(Malformed, "identity policy %s", v.name)
		c.KeyPolicy, c.Identity = doc(delegate), docs(doc(v.statement))
		cases = append(cases, c)
	}
	return cases
}
