import com.fasterxml.jackson.annotation.JsonProperty;
import jakarta.persistence.Column;
import jakarta.persistence.Entity;
import jakarta.persistence.Id;
import jakarta.persistence.Table;
import java.util.List;
import org.hibernate.annotations.JdbcTypeCode;
import org.hibernate.search.mapper.pojo.mapping.definition.annotation.FullTextField;
import org.hibernate.search.mapper.pojo.mapping.definition.annotation.GenericField;
import org.hibernate.search.mapper.pojo.mapping.definition.annotation.Indexed;
import org.hibernate.search.mapper.pojo.mapping.definition.annotation.KeywordField;
import org.hibernate.type.SqlTypes;

/** The entity of bench_contacts.py, with the mapping of bench_peers_postgres.py. */
@Entity
@Indexed(index = "bench")
@Table(name = "bench_contacts")
public class Contact {
    @Id public String id;
    @FullTextField(name = "first_name") @Column(name = "first_name") @JsonProperty("first_name") public String firstName;
    @FullTextField(name = "last_name") @Column(name = "last_name") @JsonProperty("last_name") public String lastName;
    @KeywordField public String email;
    @FullTextField public String company;
    @FullTextField public String city;
    @KeywordField @JdbcTypeCode(SqlTypes.JSON) public List<String> tags;
    @GenericField public int score;
    @KeywordField(name = "created_at") @Column(name = "created_at") @JsonProperty("created_at") public String createdAt;
    @FullTextField @Column(columnDefinition = "text") public String notes;
}
